package main

import "fmt"

// floor is what goipip has to reach: a measured value, or its ratio to another.
type floor struct {
	What    string
	of      cell
	against cell // the zero value is none
	limit   float64
	atMost  bool // else at least
	format  string
}

const (
	ratio   = "%.2f×"
	plain   = "%.0f"
	mib     = "%.1f MiB"
	seconds = "%.1f s"
)

// floors are those of the project's aims, in their order.
var floors = []floor{
	{"one TCP stream, of naive", cell{"tcp1", "goipip", "Gbit/s"}, cell{"tcp1", "naive", "Gbit/s"}, 3, false, ratio},
	{"one TCP stream, of wireguard-go", cell{"tcp1", "goipip", "Gbit/s"}, cell{"tcp1", "wireguard", "Gbit/s"}, 1.2, false, ratio},
	{"one TCP stream, of socat", cell{"tcp1", "goipip", "Gbit/s"}, cell{"tcp1", "socat", "Gbit/s"}, 5, false, ratio},
	{"4 TCP streams, of one", cell{"tcp4", "goipip", "Gbit/s"}, cell{"tcp1", "goipip", "Gbit/s"}, 0.9, false, ratio},
	{"32 TCP streams, of one", cell{"tcp32", "goipip", "Gbit/s"}, cell{"tcp1", "goipip", "Gbit/s"}, 0.9, false, ratio},
	{"UDP of 1400 bytes, of naive", cell{"udp1400", "goipip", "pps"}, cell{"udp1400", "naive", "pps"}, 1.3, false, ratio},
	{"UDP of 64 bytes, of naive", cell{"udp64", "goipip", "pps"}, cell{"udp64", "naive", "pps"}, 1.3, false, ratio},
	{"one TCP stream from the kernel's ipip, of one from goipip", cell{"tcp1", "kernel-goipip", "Gbit/s"}, cell{"tcp1", "goipip", "Gbit/s"}, 3, false, ratio},
	{"CPU seconds per GB, of naive", cell{"tcp1", "goipip", "cpu-s/GB"}, cell{"tcp1", "naive", "cpu-s/GB"}, 1. / 3, true, ratio},
	{"idle ping, median, of naive", cell{"ping", "goipip", "p50-µs"}, cell{"ping", "naive", "p50-µs"}, 1, true, ratio},
	{"fast path: one TCP stream, of the kernel's ipip", cell{"tcp1", "fast", "Gbit/s"}, cell{"tcp1", "kernel", "Gbit/s"}, 0.85, false, ratio},
	{"… 4 streams", cell{"tcp4", "fast", "Gbit/s"}, cell{"tcp4", "kernel", "Gbit/s"}, 0.85, false, ratio},
	{"… 32 streams", cell{"tcp32", "fast", "Gbit/s"}, cell{"tcp32", "kernel", "Gbit/s"}, 0.85, false, ratio},
	{"… UDP of 1400 bytes", cell{"udp1400", "fast", "pps"}, cell{"udp1400", "kernel", "pps"}, 0.85, false, ratio},
	{"… UDP of 64 bytes", cell{"udp64", "fast", "pps"}, cell{"udp64", "kernel", "pps"}, 0.85, false, ratio},
	{"… request and response, median", cell{"pingpong64", "fast", "p50-µs"}, cell{"pingpong64", "kernel", "p50-µs"}, 1.2, true, ratio},
	{"… idle ping, median", cell{"ping", "fast", "p50-µs"}, cell{"ping", "kernel", "p50-µs"}, 1.2, true, ratio},
	{"… CPU of the whole machine per GB", cell{"tcp1", "fast", "machine-s/GB"}, cell{"tcp1", "kernel", "machine-s/GB"}, 1.2, true, ratio},
	{"… at the receiving end only, one TCP stream, of goipip", cell{"tcp1", "goipip-fast", "Gbit/s"}, cell{"tcp1", "goipip", "Gbit/s"}, 1, false, ratio},
	{"… at the sending end only", cell{"tcp1", "fast-goipip", "Gbit/s"}, cell{"tcp1", "goipip", "Gbit/s"}, 1, false, ratio},
	{"heap allocations in a packet's way", cell{anyLoad, "", "allocs/op"}, cell{}, 0, true, plain},
	{"peak memory of a tunnel, over all loads", cell{anyLoad, "goipip", "rss-MiB"}, cell{}, 32, true, mib},
	{"… with the kernel's ipip at the other end", cell{anyLoad, "kernel-goipip", "rss-MiB"}, cell{}, 32, true, mib},
	{"1000 tunnels, until all links are up", cell{"Scale", "tunnels=1000", "start-s"}, cell{}, 10, true, seconds},
	{"… memory of the process", cell{"Scale", "tunnels=1000", "rss-MiB"}, cell{}, 96, true, mib},
	{"… kernel memory for each", cell{"Scale", "tunnels=1000", "slab-KiB/tunnel"}, cell{}, 1024, true, "%.0f KiB"},
	{"… threads", cell{"Scale", "tunnels=1000", "threads"}, cell{}, 32, true, plain},
	{"… CPU without packets", cell{"Scale", "tunnels=1000", "idle-%"}, cell{}, 1, true, "%.1f %%"},
	{"one TCP stream over one of 1000 tunnels, of one alone", cell{"Scale", "tunnels=1000", "stream-Gbit/s"}, cell{"Scale", "tunnels=1000", "alone-Gbit/s"}, 0.95, false, ratio},
	{"100 TCP streams over 100 tunnels, of 100 over one", cell{"Busy", "tunnels=100", "sum-Gbit/s"}, cell{"Busy", "tunnels=1", "sum-Gbit/s"}, 0.9, false, ratio},
	{"reload of 1000 tunnels, of which one changes", cell{"Reload", "tunnels=1000", "reload-ms"}, cell{}, 200, true, "%.0f ms"},
	{"… packets lost on another", cell{"Reload", "tunnels=1000", "lost"}, cell{}, 0, true, plain},
	{"CPU after a burst of 10 000 route changes", cell{"Routes", "tunnels=1000", "after-%"}, cell{}, 1, true, "%.1f %%"},
}

// verdict is a floor as it came out.
type verdict struct{ What, Floor, Reached, Holds string }

func (r *rounds) verdicts() []verdict {
	verdicts := make([]verdict, len(floors))
	for i, f := range floors {
		v := verdict{f.What, "≥ ", unknown, unknown}
		if f.atMost {
			v.Floor = "≤ "
		}
		v.Floor += fmt.Sprintf(f.format, f.limit)
		if reached, ok := r.reached(f); ok {
			v.Reached, v.Holds = fmt.Sprintf(f.format, reached), "**no**"
			if f.holds(reached) {
				v.Holds = "yes"
			}
		}
		verdicts[i] = v
	}
	return verdicts
}

func (f floor) holds(reached float64) bool {
	if f.atMost {
		return reached <= f.limit
	}
	return reached >= f.limit
}

func (r *rounds) reached(f floor) (float64, bool) {
	reached, ok := r.median[f.of]
	if f.against == (cell{}) || !ok {
		return reached, ok
	}
	other, ok := r.median[f.against]
	return reached / other, ok && other > 0
}
