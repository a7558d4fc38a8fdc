package metrics

import (
	"goipip/internal/daemon/control"
	"goipip/internal/stats"
)

// family is a metric for all values of its labels.
type family struct {
	name, help string
	counter    bool     // or else a gauge
	labelNames []string // in order
	index      int      // in families
}

// families are all there are.
var families []*family

func newFamily(name, help string, counter bool, labels []string) *family {
	name = "goipip_" + name
	f := &family{name, help, counter, labels, len(families)}
	families = append(families, f)
	return f
}

func gauge(name, help string, labels ...string) *family {
	return newFamily(name, help, false, labels)
}

func counter(name, help string, labels ...string) *family {
	return newFamily(name, help, true, labels)
}

// The metrics that are not read as those below are.
var (
	buildInfo  = gauge("build_info", "Always 1; its labels are the version of goipip and that of Go.", "goversion", "version")
	tunnelInfo = gauge("tunnel_info",
		"Always 1; its labels are the device that packets leave by, the link's present name, and the outer addresses.",
		"device", "link", "local", "remote", "tunnel")
	tunnelUp = gauge("tunnel_up",
		"Whether the tunnel works: 1, or 0 if it is configured and does not run, its link is down, or no packet can leave.", "tunnel")
)

// metric is a family with certain labels, and how its value is read of a T; false if there is
// none.
type metric[T any] struct {
	*family
	labels []*label
	read   func(*T) (float64, bool)
}

// of returns a metric that each T has.
func of[T any](f *family, read func(*T) float64, namesAndValues ...string) metric[T] {
	return metric[T]{f, labels(namesAndValues...), func(t *T) (float64, bool) { return read(t), true }}
}

var processMetrics = processList()

func processList() []metric[control.Status] {
	type status = control.Status
	// reload reads what only a process with a configuration has.
	reload := func(f *family, read func(*control.Reloads) float64, namesAndValues ...string) metric[status] {
		return metric[status]{f, labels(namesAndValues...), func(s *status) (float64, bool) {
			if s.Reloads == nil {
				return 0, false
			}
			return read(s.Reloads), true
		}}
	}
	reloads := counter("config_reloads_total",
		"Times that the configuration was read again, with success if each tunnel was then as it says, or with failure.", "result")
	return []metric[status]{
		reload(gauge("config_last_reload_success_timestamp_seconds",
			"When the configuration was last read with success, in seconds since 1970; 0 if never."),
			func(r *control.Reloads) float64 { return seconds(r.LastGood) }),
		reload(gauge("config_last_reload_successful",
			"Whether the configuration was last read with success: 1, or 0 if it has an error or a tunnel could not be started or changed."),
			func(r *control.Reloads) float64 { return number(!r.LastFailed) }),
		reload(reloads, func(r *control.Reloads) float64 { return float64(r.Failed) }, "result", "failure"),
		reload(reloads, func(r *control.Reloads) float64 { return float64(r.Succeeded) }, "result", "success"),
		of(gauge("foreign_module",
			"Whether something else in this kernel answers ipip packets (the module ipip, sit or tunnel4), to the harm of the tunnels."),
			func(s *status) float64 { return number(s.Conflict != "") }),
		of(counter("receive_overflow_packets_total",
			"Packets that found no room on a receiving socket, and of which the kernel does not tell which tunnel they were for."),
			func(s *status) float64 { return float64(s.Unattributed) }),
	}
}

// The values of the label direction.
const (
	receive  = "receive"
	transmit = "transmit"
)

var tunnelMetrics = tunnelList()

func tunnelList() []metric[control.TunnelStatus] {
	type tunnel = control.TunnelStatus
	list := drops()
	fast := counter("tunnel_fast_path_packets_total",
		"Packets among those received and sent that the kernel has carried by itself; absent where the fast path is off.", "direction", "tunnel")
	carried := func(direction string, read func(*control.FastPath) uint64) metric[tunnel] {
		return metric[tunnel]{fast, labels("direction", direction), func(t *tunnel) (float64, bool) {
			if t.FastPath == nil {
				return 0, false
			}
			return float64(read(t.FastPath)), true
		}}
	}
	list = append(list,
		carried(receive, func(f *control.FastPath) uint64 { return f.Received }),
		carried(transmit, func(f *control.FastPath) uint64 { return f.Sent }),
		of(counter("tunnel_icmp_errors_total",
			"ICMP errors that came about the tunnel's packets: destination unreachable, and time exceeded.", "tunnel"),
			func(t *tunnel) float64 { return float64(t.ICMPErrors) }),
		of(gauge("tunnel_mtu_bytes", "MTU of the tunnel's link.", "tunnel"),
			func(t *tunnel) float64 { return float64(t.MTU) }),
		metric[tunnel]{gauge("tunnel_path_mtu_bytes",
			"MTU of the path to the remote address, for outer packets; absent while there is no path.", "tunnel"), nil,
			func(t *tunnel) (float64, bool) { return float64(t.Underlay.PathMTU), t.Underlay.PathMTU != 0 }},
		of(gauge("tunnel_peer_last_receive_timestamp_seconds",
			"When the last packet came from the remote address, to the second, in seconds since 1970; 0 if none did.", "tunnel"),
			func(t *tunnel) float64 { return seconds(t.RX.Last) }),
		of(counter("tunnel_receive_bytes_total", "Bytes of the packets received, from the inner IP header on.", "tunnel"),
			func(t *tunnel) float64 { return float64(t.RX.Bytes) }),
		of(counter("tunnel_receive_packets_total", "Packets received from the remote address and passed to the link.", "tunnel"),
			func(t *tunnel) float64 { return float64(t.RX.Packets) }),
		of(counter("tunnel_transmit_bytes_total", "Bytes of the packets sent, from the inner IP header on.", "tunnel"),
			func(t *tunnel) float64 { return float64(t.TX.Bytes) }),
		of(counter("tunnel_transmit_packets_total", "Packets from the link sent to the remote address.", "tunnel"),
			func(t *tunnel) float64 { return float64(t.TX.Packets) }),
	)
	path := gauge("tunnel_transmit_path",
		"How packets leave: 1 for the kernel by itself (fast), the packet socket (packet) or the raw socket (raw), and 0 for the other two.", "path", "tunnel")
	for _, p := range []string{"fast", "packet", "raw"} {
		list = append(list, of(path, func(t *tunnel) float64 { return number(transmitPath(t) == p) }, "path", p))
	}
	return append(list, of(tunnelUp, func(t *tunnel) float64 { return number(trouble(t) == "") }))
}

// drops are the packets dropped for each reason that a direction has.
func drops() (list []metric[control.TunnelStatus]) {
	dropped := counter("tunnel_dropped_packets_total",
		"Packets dropped on the way from the remote address (receive) or from the link (transmit), by reason.", "direction", "reason", "tunnel")
	for _, direction := range []string{receive, transmit} {
		for r := range stats.NumReasons {
			linkCounter, traffic := r.RX(), func(t *control.TunnelStatus) *control.Traffic { return &t.RX }
			if direction == transmit {
				linkCounter, traffic = r.TX(), func(t *control.TunnelStatus) *control.Traffic { return &t.TX }
			}
			if !r.Dropped() || linkCounter == "" {
				continue
			}
			list = append(list, of(dropped, func(t *control.TunnelStatus) float64 { return float64(traffic(t).Drops[r.String()]) },
				"direction", direction, "reason", r.String()))
		}
	}
	return list
}

// transmitPath is how packets leave.
func transmitPath(t *control.TunnelStatus) string {
	if t.FastPath != nil && t.FastPath.Used {
		return "fast"
	}
	return t.Underlay.Transmit
}
