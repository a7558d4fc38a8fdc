package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"math"
	"strconv"
	"strings"
	"text/template"
)

// unknown stands for what was not measured.
const unknown = "–"

// peer is one of BenchmarkTunnel's, and its name for people.
type peer struct{ key, Name string }

// peers are in the order of the table: what has no tunnel program, those that
// goipip is measured against, and goipip.
var peers = []peer{
	{"none", "no tunnel"},
	{"kernel", "kernel"},
	{"kernel-goipip", "kernel → goipip"},
	{"socat", "socat"},
	{"naive", "naive"},
	{"wireguard", "wireguard-go"},
	{"goipip", "goipip"},
	{"goipip-fast", "goipip → fast path"},
	{"fast-goipip", "fast path → goipip"},
	{"fast", "fast path"},
}

// rivals are the peers that the table has goipip's ratio to.
var rivals = []string{"naive", "wireguard", "socat"}

// row is one line of the table.
type row struct {
	what, load, unit string
	shown            string  // of the unit
	scale            float64 // from unit to shown
}

var rows = []row{
	{"TCP, one stream", "tcp1", "Gbit/s", "Gbit/s", 1},
	{"… CPU of the tunnel's processes", "tcp1", "cpu-s/GB", "s/GB", 1},
	{"… CPU of the whole machine", "tcp1", "machine-s/GB", "s/GB", 1},
	{"TCP, 4 streams", "tcp4", "Gbit/s", "Gbit/s", 1},
	{"TCP, 32 streams", "tcp32", "Gbit/s", "Gbit/s", 1},
	{"TCP, one stream, cut in software", "cut-tcp1", "Gbit/s", "Gbit/s", 1},
	{"… 4 streams", "cut-tcp4", "Gbit/s", "Gbit/s", 1},
	{"TCP with bbr, one stream", "bbr1", "Gbit/s", "Gbit/s", 1},
	{"UDP, 1400 bytes, < 0.1 % lost", "udp1400", "pps", "1000/s", 1e-3},
	{"… received of all that can be sent", "udp1400", "flood-pps", "1000/s", 1e-3},
	{"UDP, 64 bytes, < 0.1 % lost", "udp64", "pps", "1000/s", 1e-3},
	{"… received of all that can be sent", "udp64", "flood-pps", "1000/s", 1e-3},
	{"Request and response, median", "pingpong64", "p50-µs", "µs", 1},
	{"… 99 %", "pingpong64", "p99-µs", "µs", 1},
	{"Ping with nothing else, median", "ping", "p50-µs", "µs", 1},
	{"… 99 %", "ping", "p99-µs", "µs", 1},
	{"Peak memory of a process, over all loads", anyLoad, "rss-MiB", "MiB", 1},
}

//go:embed table.md.tmpl
var tableText string

var tableTemplate = template.Must(template.New("table").Parse(tableText))

// table returns the Markdown page.
func (r *rounds) table() ([]byte, error) {
	var out bytes.Buffer
	err := tableTemplate.Execute(&out, map[string]any{
		"Machine": r.machine(),
		"Commit":  r.config["commit"],
		"Rounds":  r.number,
		"Busy":    r.busy(),
		"Peers":   peers,
		"Missing": strings.Join(r.missing(), ", "),
		"Rows":    r.rows(),
		"Scale":   r.scaleTable(),
		"Floors":  r.verdicts(),
		"Micro":   r.microRows(),
	})
	return out.Bytes(), err
}

// busy returns what BenchmarkQuiet found, in percent.
func (r *rounds) busy() string { return r.number3(cell{"Quiet", "", "busy-%"}, 1) }

// missing names the peers that could not run.
func (r *rounds) missing() []string {
	ran := map[string]bool{}
	for c := range r.values {
		ran[c.peer] = true
	}
	var names []string
	for _, p := range peers {
		if !ran[p.key] {
			names = append(names, p.Name)
		}
	}
	return names
}

// rows returns the cells of the table, row by row.
func (r *rounds) rows() [][]string {
	var lines [][]string
	for _, row := range rows {
		line := []string{row.what, row.shown}
		for _, p := range peers {
			line = append(line, r.number3(cell{row.load, p.key, row.unit}, row.scale))
		}
		goipip, ok := r.median[cell{row.load, "goipip", row.unit}]
		for _, rival := range rivals {
			text := unknown
			if m := r.median[cell{row.load, rival, row.unit}]; ok && m > 0 {
				text = fmt.Sprintf(ratio, goipip/m)
			}
			line = append(line, text)
		}
		lines = append(lines, line)
	}
	return lines
}

// microRows returns name, time, throughput and allocations of the benchmarks that
// have no peers.
func (r *rounds) microRows() [][]string {
	var lines [][]string
	for _, name := range r.micro {
		if _, ok := r.median[cell{name, "", "ns/op"}]; !ok {
			continue
		}
		line := []string{name}
		for _, unit := range []string{"ns/op", "MB/s", "allocs/op"} {
			line = append(line, r.number3(cell{name, "", unit}, 1))
		}
		lines = append(lines, line)
	}
	return lines
}

// number3 returns the median of a cell with three digits.
func (r *rounds) number3(c cell, scale float64) string {
	m, ok := r.median[c]
	if !ok {
		return unknown
	}
	return digits3(m * scale)
}

// digits3 returns v with three digits, or more where they stand before the point.
func digits3(v float64) string {
	if v == 0 {
		return "0"
	}
	before := int(math.Floor(math.Log10(math.Abs(v)))) + 1
	return strconv.FormatFloat(v, 'f', max(0, min(3, 3-before)), 64)
}
