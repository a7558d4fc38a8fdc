package metrics

import (
	"runtime"
	"time"

	"goipip/internal/daemon/control"
	"goipip/internal/stats"

	"github.com/prometheus/client_golang/prometheus"
)

// Source is the daemon that metrics are of. Any goroutine may call its methods, which wait for
// no change of a tunnel.
type Source interface {
	LastStatus() control.Status
	// Health returns an error if no packets can pass in this process any more.
	Health() error
}

// The directions of packets.
const (
	receive  = "receive"
	transmit = "transmit"
)

// The metrics of a process. What they mean stands in their help, which docs/metrics.md has too.
var (
	buildInfo = describe("build_info", "Always 1; its labels are the version of goipip and that of Go.", "version", "goversion")

	reloads = describe("config_reloads_total",
		"Times that the configuration was read again: with success, so that each tunnel is as it says, or with failure.", "result")
	reloadGood = describe("config_last_reload_successful",
		"Whether the configuration was carried out when it was last read: 1, or 0 if it has an error or a tunnel did not start or change.")
	reloadTime = describe("config_last_reload_success_timestamp_seconds",
		"When the configuration was last read and carried out, in seconds since 1970; 0 if never.")

	conflict = describe("foreign_module",
		"Whether something else in this kernel answers ipip packets (the modules ipip, sit or tunnel4), which disturbs the tunnels.")
	unattributed = describe("receive_overflow_packets_total",
		"Packets that found no room on a receiving socket, and of which the kernel does not tell which tunnel they were for.")
)

// The metrics of a tunnel.
var (
	tunnelInfo = describe("tunnel_info",
		"Always 1; its labels are the present name of the link, the outer addresses, and the device that packets leave by.",
		"tunnel", "link", "local", "remote", "device")
	tunnelUp = describe("tunnel_up",
		"Whether the tunnel works: 1, or 0 if it does not run although it is configured, its link is down, or no packet can leave.", "tunnel")
	mtu     = describe("tunnel_mtu_bytes", "MTU of the tunnel's link.", "tunnel")
	pathMTU = describe("tunnel_path_mtu_bytes",
		"MTU of the path to the remote address, for outer packets; absent while there is no path.", "tunnel")

	receivePackets  = describe("tunnel_receive_packets_total", "Packets received from the remote address and passed to the link.", "tunnel")
	receiveBytes    = describe("tunnel_receive_bytes_total", "Bytes of the packets received, from the inner IP header on.", "tunnel")
	transmitPackets = describe("tunnel_transmit_packets_total", "Packets from the link sent to the remote address.", "tunnel")
	transmitBytes   = describe("tunnel_transmit_bytes_total", "Bytes of the packets sent, from the inner IP header on.", "tunnel")
	dropped         = describe("tunnel_dropped_packets_total",
		"Packets dropped on the way from the link (transmit) or from the remote address (receive), by reason.", "tunnel", "direction", "reason")

	lastReceive = describe("tunnel_peer_last_receive_timestamp_seconds",
		"When the last packet came from the remote address, to the second, in seconds since 1970; 0 if none did.", "tunnel")
	icmpErrors = describe("tunnel_icmp_errors_total",
		"ICMP errors that came about the tunnel's packets: destination unreachable, and time exceeded.", "tunnel")

	transmitPath = describe("tunnel_transmit_path",
		"How packets leave: 1 for the raw socket (raw), the packet socket (packet) or the kernel by itself (fast), and 0 for the other two.", "tunnel", "path")
	fastPackets = describe("tunnel_fast_path_packets_total",
		"Packets among those sent and received that the kernel has carried by itself; absent where the fast path is off.", "tunnel", "direction")
)

// descriptions has all of the above.
var descriptions []*prometheus.Desc

func describe(name, help string, labels ...string) *prometheus.Desc {
	d := prometheus.NewDesc("goipip_"+name, help, labels, nil)
	descriptions = append(descriptions, d)
	return d
}

// collector makes metrics of what a source says when it is asked for them.
type collector struct{ source Source }

// Describe sends all descriptions.
func (c collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range descriptions {
		to <- d
	}
}

// Collect sends the metrics of the process, and of each tunnel that there is at the moment.
func (c collector) Collect(to chan<- prometheus.Metric) {
	s := c.source.LastStatus()
	out := sink{to}
	out.gauge(buildInfo, 1, s.Process.Version, runtime.Version())
	out.gauge(conflict, number(s.Conflict != ""))
	out.counter(unattributed, s.Unattributed)
	if r := s.Reloads; r != nil {
		out.counter(reloads, r.Succeeded, "success")
		out.counter(reloads, r.Failed, "failure")
		out.gauge(reloadGood, number(!r.LastFailed))
		out.gauge(reloadTime, seconds(r.LastGood))
	}
	for _, name := range s.Missing {
		out.gauge(tunnelUp, 0, name)
	}
	for i := range s.Tunnels {
		out.tunnel(&s.Tunnels[i])
	}
}

// sink sends metrics.
type sink struct{ to chan<- prometheus.Metric }

func (s sink) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s.to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (s sink) counter(d *prometheus.Desc, n uint64, labels ...string) {
	s.to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
}

func (s sink) tunnel(t *control.TunnelStatus) {
	name := t.Name
	s.gauge(tunnelInfo, 1, name, t.Config.Name, t.Config.LocalText(), t.Config.Remote.String(), t.Underlay.Device)
	s.gauge(tunnelUp, number(trouble(t) == ""), name)
	s.gauge(mtu, float64(t.MTU), name)
	if t.Underlay.PathMTU != 0 {
		s.gauge(pathMTU, float64(t.Underlay.PathMTU), name)
	}
	s.counter(receivePackets, t.RX.Packets, name)
	s.counter(receiveBytes, t.RX.Bytes, name)
	s.counter(transmitPackets, t.TX.Packets, name)
	s.counter(transmitBytes, t.TX.Bytes, name)
	for r := range stats.NumReasons {
		if !r.Dropped() {
			continue
		}
		if r.RX() != "" {
			s.counter(dropped, t.RX.Drops[r.String()], name, receive, r.String())
		}
		if r.TX() != "" {
			s.counter(dropped, t.TX.Drops[r.String()], name, transmit, r.String())
		}
	}
	s.gauge(lastReceive, seconds(t.RX.Last), name)
	s.counter(icmpErrors, t.ICMPErrors, name)

	path := t.Underlay.Transmit
	if f := t.FastPath; f != nil {
		if f.Used {
			path = "fast"
		}
		s.counter(fastPackets, f.Received, name, receive)
		s.counter(fastPackets, f.Sent, name, transmit)
	}
	for _, p := range []string{"raw", "packet", "fast"} {
		s.gauge(transmitPath, number(p == path), name, p)
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
