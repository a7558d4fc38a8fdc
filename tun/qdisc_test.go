package tun_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab/labtest"
	"goipip/tun"
)

// A link takes little memory that the kernel cannot reclaim. With the default qdisc it would
// be 25 MB: three rings of txqueuelen for each of 256 transmit queues.
func TestHazard16_Memory(t *testing.T) {
	const tries, links, limit = 3, 8, 1 << 20 // bytes a link
	h := newHost(t)
	var perLink []int
	// All links stay until the end, because the kernel frees their memory later
	// than it removes them. The median, because other programs take memory too.
	for try := range tries {
		before := slabUnreclaimable(t)
		for i := range links {
			d := open(t, h, tun.Config{Name: fmt.Sprintf("tun%d-%d", try, i), Queues: 1, Offload: true})
			setup(t, d, tun.Link{MTU: 1480, Remote: link.Remote})
		}
		perLink = append(perLink, (slabUnreclaimable(t)-before)/links)
	}
	slices.Sort(perLink)
	t.Logf("bytes per link: %d", perLink)
	if median := perLink[tries/2]; median > limit {
		t.Errorf("a link takes %d bytes of unreclaimable memory, want at most %d", median, limit)
	}
}

// slabUnreclaimable returns how much memory the kernel has for its own objects and
// cannot reclaim, in bytes (proc_meminfo(5)).
func slabUnreclaimable(t *testing.T) int {
	t.Helper()
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(meminfo)) {
		var kib int
		if n, _ := fmt.Sscanf(line, "SUnreclaim: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	t.Fatal("/proc/meminfo has no SUnreclaim")
	return 0
}

// The link keeps the qdisc of the kernel's ipip device until another program replaces it,
// and carries packets with any.
func TestHazard16_Noqueue(t *testing.T) {
	labtest.Need(t, "ip")
	h := newHost(t)
	d := openUp(t, h, tun.Config{Name: "tun01", Queues: 2, Offload: true})
	// The kernel chooses the queue, so one channel gets the packets of both.
	q, r := d.Queues()[0], startReadingAll(d)
	c := listen(t, h, here)
	for _, step := range []struct{ command, qdisc string }{
		{"ip link show tun01", "noqueue"},
		{"ip link set tun01 down", "noqueue"},
		{"ip link set tun01 up", "noqueue"},
		{"ip link set tun01 mtu 1400", "noqueue"},
		{"ip link set tun01 txqueuelen 1000", "noqueue"},
		{"tc qdisc replace dev tun01 root pfifo limit 10", "pfifo"},
		{"ip link set tun01 down", "pfifo"},
		{"ip link set tun01 up", "pfifo"},
		{"ip link set tun01 txqueuelen 500", "pfifo"},
		{"tc qdisc del dev tun01 root", "mq"}, // the kernel's default for several queues
		{"tc qdisc add dev tun01 root noqueue", "noqueue"},
	} {
		words := strings.Fields(step.command)
		if out, err := h.Output(words[0], words[1:]...); err != nil {
			t.Fatalf("%s: %v: %s", step.command, err, out)
		}
		if got := qdisc(t, h, d); got != step.qdisc {
			t.Errorf("after %s the qdisc is %q, want %q", step.command, got, step.qdisc)
		}
		if !strings.HasSuffix(step.command, " down") {
			checkTraffic(t, q, r, c)
		}
	}
}

// startReadingAll reads all queues of a device as one.
func startReadingAll(d *tun.Device) *reading {
	all := startReading(d.Queues()[0])
	for _, q := range d.Queues()[1:] {
		r := startReading(q)
		go func() {
			for {
				select {
				case p := <-r.packets:
					all.packets <- p
				case <-r.err:
					return
				}
			}
		}()
	}
	return all
}

// qdisc returns the kind of the link's root qdisc.
func qdisc(t *testing.T, h *host, d *tun.Device) string {
	t.Helper()
	return strings.TrimRight(string(linkAttr(t, h, d, unix.IFLA_QDISC)), "\x00")
}

// Setup works on a kernel without a choice of qdiscs.
func TestHazard16_NoChoice(t *testing.T) {
	for _, tt := range []struct {
		err   error
		fatal bool
	}{
		{nil, false},
		{unix.EOPNOTSUPP, false}, // no CONFIG_NET_SCHED: nothing answers RTM_NEWQDISC
		{unix.ENOENT, false},
		{fmt.Errorf("%w: Specified qdisc kind is unknown", unix.ENOENT), false},
		{unix.ENODEV, true},
		{unix.EPERM, true},
	} {
		if got := tun.QdiscError(tt.err); (got != nil) != tt.fatal {
			t.Errorf("%v becomes %v, want an error: %v", tt.err, got, tt.fatal)
		}
	}
}
