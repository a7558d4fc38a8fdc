package metrics

import (
	"cmp"
	"runtime"
	"slices"
	"time"

	"goipip/internal/daemon/control"

	"github.com/prometheus/client_golang/prometheus"
)

// collector makes metrics of what a source says when it is asked for them.
type collector struct{ source Source }

// Describe sends the descriptions of all metrics.
func (c collector) Describe(to chan<- *prometheus.Desc) {
	for _, f := range families {
		to <- f.desc
	}
}

// Collect sends the metrics of the process, and of each tunnel that there is at the moment.
func (c collector) Collect(to chan<- prometheus.Metric) {
	s := c.source.LastStatus()
	for _, m := range processMetrics {
		if v, ok := m.read(&s); ok {
			to <- &sample{m.family, m.labels, v}
		}
	}
	to <- &sample{buildInfo, labels("goversion", runtime.Version(), "version", s.Process.Version), 1}
	for _, name := range s.Missing {
		to <- &sample{tunnelUp, labels("tunnel", name), 0}
	}

	// In the order of an exposition, so that nothing is left to sort.
	slices.SortFunc(s.Tunnels, func(a, b control.TunnelStatus) int { return cmp.Compare(a.Name, b.Name) })
	names := make([]*label, len(s.Tunnels))
	for i := range s.Tunnels {
		names[i] = newLabel("tunnel", s.Tunnels[i].Name)
	}
	for _, m := range tunnelMetrics {
		samples := make([]sample, len(s.Tunnels))
		for i := range s.Tunnels {
			if v, ok := m.read(&s.Tunnels[i]); ok {
				samples[i] = sample{m.family, append(slices.Clip(m.labels), names[i]), v}
				to <- &samples[i]
			}
		}
	}
	for i := range s.Tunnels {
		t := &s.Tunnels[i]
		to <- &sample{tunnelInfo, append(labels("device", t.Underlay.Device, "link", t.Config.Name,
			"local", t.Config.LocalText(), "remote", t.Config.Remote.String()), names[i]), 1}
	}
}

// trouble returns why a tunnel does not work; empty if it does. Whether a link in another
// network namespace is up is not known.
func trouble(t *control.TunnelStatus) string {
	if !t.Up && !t.Away {
		return "the link is down"
	}
	return t.Trouble
}

// number is 1 for true, and 0 for false.
func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// seconds is t since 1970, and 0 for the zero time.
func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
