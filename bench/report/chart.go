package main

import (
	"bytes"
	_ "embed"
	"strings"
	"text/template"
)

// panel is one small chart, of the tunnels in user space. What has the kernel at an
// end would leave them no room, and is told in words.
type panel struct {
	title, note string
	cell        cell // without the peer
	scale       float64
}

// picture is one chart of several panels.
type picture struct {
	Title, Text string
	panels      []panel
	bars, words []string // the peers that each panel draws, and those that it tells of
	own         string   // of the bars
}

var peerPicture = picture{
	Title: "goipip beside its peers",
	Text: "Tunnels in user space between two namespaces of one machine, which also makes the load. Below each: the kernel at one end, at " +
		"both, and no tunnel.",
	panels: panels,
	bars:   []string{"socat", "naive", "wireguard", "goipip"},
	words:  []string{"kernel-goipip", "kernel", "none"},
	own:    "goipip",
}

var panels = []panel{
	{"TCP, one stream", "Gbit/s", cell{load: "tcp1", unit: "Gbit/s"}, 1},
	{"TCP, 32 streams", "Gbit/s", cell{load: "tcp32", unit: "Gbit/s"}, 1},
	{"CPU for a gigabyte of it", "s, the whole machine; less is better", cell{load: "tcp1", unit: "machine-s/GB"}, 1},
	{"UDP, 1400 bytes", "1000 packets/s, < 0.1 % lost", cell{load: "udp1400", unit: "pps"}, 1e-3},
	{"UDP, 64 bytes", "1000 packets/s, < 0.1 % lost", cell{load: "udp64", unit: "pps"}, 1e-3},
	{"Ping with nothing else", "µs, median; less is better", cell{load: "ping", unit: "p50-µs"}, 1},
}

// Lengths of the drawing, in its own units.
const (
	columns     = 3
	margin      = 24
	panelWidth  = 280
	panelHeight = 170
	panelGap    = 32
	chartTop    = 76 // of the first row of panels
	barTop      = 50 // of the first bar in its panel
	barPitch    = 26 // from one bar to the next
	barHeight   = 16
	labelWidth  = 88 // left of the bars
	valueWidth  = 44 // right of the longest
	footHeight  = 40 // below the panels
)

// drawing is what the template draws.
type drawing struct {
	picture
	Width, Height, Foot float64
	Machine, Busy       string
	Rounds              int
	Panels              []drawnPanel
}

type drawnPanel struct {
	X, Y        float64
	Title, Note string
	Bars        []drawnBar
	Words       string
	WordsY      float64
}

type drawnBar struct {
	Name, Value           string
	Own                   bool // goipip's
	X, Y, Width, Height   float64
	Middle, From, To      float64 // of the line over all rounds, from least to greatest
	Known                 bool
	ValueX, LabelX, TextY float64
}

//go:embed chart.svg.tmpl
var chartText string

var chartTemplate = template.Must(template.New("chart").Parse(chartText))

// chart returns the picture. It has a background of its own, because a page in the
// dark may show it to a browser that is not, and the other way round.
func (r *rounds) chart(p picture) ([]byte, error) {
	lines := (len(p.panels) + columns - 1) / columns
	d := drawing{
		picture: p,
		Width:   2*margin + columns*panelWidth + (columns-1)*panelGap,
		Height:  float64(chartTop + lines*panelHeight + (lines-1)*panelGap + footHeight + margin),
		Machine: r.machine(),
		Rounds:  r.number,
		Busy:    r.busy(),
	}
	d.Foot = d.Height - margin - 14 // of the first of two lines
	for i, panel := range p.panels {
		drawn := r.draw(panel, p)
		drawn.X = margin + float64(i%columns)*(panelWidth+panelGap)
		drawn.Y = chartTop + float64(i/columns)*(panelHeight+panelGap)
		d.Panels = append(d.Panels, drawn)
	}
	var out bytes.Buffer
	err := chartTemplate.Execute(&out, d)
	return out.Bytes(), err
}

func (r *rounds) draw(p panel, in picture) drawnPanel {
	drawn := drawnPanel{Title: p.title, Note: p.note, WordsY: barTop + float64(len(in.bars))*barPitch + 14}
	greatest := 0.0
	for _, key := range in.bars {
		greatest = max(greatest, r.spread[p.of(key)].to)
	}
	length := func(v float64) float64 { return v / greatest * (panelWidth - labelWidth - valueWidth) }
	for i, key := range in.bars {
		b := drawnBar{Name: nameOf(key), Value: r.number3(p.of(key), p.scale), Own: key == in.own, X: labelWidth, Height: barHeight}
		b.Y = barTop + float64(i)*barPitch
		b.Middle, b.TextY = b.Y+barHeight/2, b.Y+barHeight-4
		b.LabelX, b.ValueX = labelWidth-8, labelWidth+6
		if median, ok := r.median[p.of(key)]; ok {
			spread := r.spread[p.of(key)]
			b.Known, b.Width = true, length(median)
			b.From, b.To = labelWidth+length(spread.from), labelWidth+length(spread.to)
			b.ValueX += length(spread.to)
		}
		drawn.Bars = append(drawn.Bars, b)
	}
	var told []string
	for _, key := range in.words {
		if _, ok := r.median[p.of(key)]; ok {
			told = append(told, nameOf(key)+" "+r.number3(p.of(key), p.scale))
		}
	}
	drawn.Words = strings.Join(told, " · ")
	return drawn
}

// of returns the panel's cell of one peer.
func (p panel) of(peer string) cell {
	c := p.cell
	c.peer = peer
	return c
}

func nameOf(key string) string {
	for _, p := range peers {
		if p.key == key {
			return p.Name
		}
	}
	if n, ok := strings.CutPrefix(key, "tunnels="); ok {
		return n
	}
	return key
}
