package oracle_test

import (
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"goipip/internal/netlab/labtest"
	run "goipip/internal/tunnel"
)

const (
	// sentinelTime is how long a device may take for a window at first. Then the sentinels are sent again, which also wakes
	// a guest that has slept over them, and it may take twice the time.
	sentinelTime = 50 * time.Millisecond
	// sentinelTries is how often a sentinel is sent.
	sentinelTries = 9
)

// output is what came out of a device.
type output struct {
	side  side
	frame []byte // Ethernet
}

// results are a device's outputs for each input of a window.
type results [][]output

// rig is the driver between the devices.
type rig struct {
	t       *testing.T
	devices [2]*device // the reference, goipip
	goipip  *goipip
	tags    tags

	now      window
	books    books
	passed   [2]int          // outputs that belong to an input
	sent     [2]uint64       // packets for goipip, by direction
	named    int             // inputs that are counted wrong
	failures int             // of tests
	late     map[uint16]bool // tags of inputs that had outputs after their window
	frame    []byte
}

// window is what is being exchanged.
type window struct {
	inputs    []input
	owners    owners
	results   [2]results
	strays    [2][]output // of no input that is known
	sentinels []sentinel
	passed    [2]map[uint16]bool // sentinels that came out of a device
}

// rigNeeds are what the machine must have for a rig.
var rigNeeds = []string{"root", "tun", "uml", "ip"}

// newRig builds everything, without tunnels. It ends with the test.
func newRig(t *testing.T, fast run.FastPath) *rig {
	t.Helper()
	labtest.Need(t, rigNeeds...)
	lab := labtest.New(t)
	driver, err := lab.Host("driver")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, late: map[uint16]bool{}}
	if r.devices[0], err = newReference(driver); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.devices[0].close)
	if r.goipip, err = newGoipip(lab, driver, fast); err != nil {
		t.Fatal(err)
	}
	r.devices[1] = &r.goipip.device
	t.Cleanup(r.devices[1].close)
	t.Cleanup(func() {
		if err := r.goipip.stop(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// configure gives both devices a new tunnel.
func (r *rig) configure(c tunnel) {
	r.t.Helper()
	anyLocal = c.anyLocal
	for _, d := range r.devices {
		if err := d.tunnel(c); err != nil {
			r.fatalf("%s: tunnel %q: %v", d.name, c.name, err)
		}
	}
	r.exchange(nil) // the first packet may be lost in a new tunnel
}

// direct runs f while inputs that are direct come to the tunnels as they are, past
// the routers: no IPv4 code has looked at them.
func (r *rig) direct(f func()) {
	r.t.Helper()
	ref := r.devices[0]
	port, err := openPort(r.goipip.host, "tun01")
	if err != nil {
		r.fatalf("%v", err)
	}
	r.goipip.direct = port
	if _, err := ref.run("tc qdisc add dev $inner ingress && tc filter add dev $inner ingress protocol all matchall action mirred egress redirect dev tun01"); err != nil {
		r.fatalf("%v", err)
	}
	defer func() { // a test may end in f
		r.goipip.direct.close()
		r.goipip.direct = nil
		if _, err := ref.run("tc qdisc del dev $inner ingress"); err != nil {
			r.t.Error(err)
		}
	}()
	f()
}

// script runs a shell script on both devices.
func (r *rig) script(script string) {
	r.t.Helper()
	for _, d := range r.devices {
		if _, err := d.run(script); err != nil {
			r.fatalf("%v", err)
		}
	}
}

// exchange sends inputs to both devices and returns what comes out for each,
// the reference's first, and what comes out that is of none of them.
func (r *rig) exchange(inputs []input) ([2]results, [2][]output) {
	r.t.Helper()
	r.put(inputs, r.tags.sentinels())
	return r.now.results, r.now.strays
}

// put sends inputs to both devices, and waits for the sentinels after them.
func (r *rig) put(inputs []input, sentinels []sentinel) {
	r.t.Helper()
	r.now = window{inputs: inputs, owners: ownersOf(inputs), sentinels: sentinels}
	for d := range r.devices {
		r.now.results[d] = make(results, len(inputs))
		r.now.passed[d] = map[uint16]bool{}
		for i := range inputs {
			r.send(d, &inputs[i])
		}
	}
	for try := range sentinelTries {
		for d := range r.devices {
			for i := range sentinels {
				r.send(d, &sentinels[i].input)
			}
		}
		for deadline := time.Now().Add(sentinelTime << try); time.Now().Before(deadline); {
			if r.drain(); r.allPassed(0) && r.allPassed(1) {
				r.drain() // other ports had their frames before
				return
			}
			r.wait(time.Until(deadline))
		}
	}
	for d, dev := range r.devices {
		if !r.allPassed(d) {
			r.fatalf("%s passes nothing any more", dev.name)
		}
	}
}

func (r *rig) allPassed(d int) bool { return len(r.now.passed[d]) == len(r.now.sentinels) }

// send sends one input to one device.
func (r *rig) send(d int, in *input) {
	r.t.Helper()
	dev := r.devices[d]
	from := inner
	if in.dir == decap {
		from = under
	}
	for _, p := range in.packets {
		if d == 0 {
			r.books.in(p)
		} else {
			r.sent[in.dir]++
		}
		port := dev.ports[from]
		r.frame = r.frame[:0]
		if in.direct && dev.direct != nil {
			port = dev.direct
		} else {
			r.frame = appendEthernet(r.frame, dev.macs[from], driverMAC, in.etherType)
		}
		r.frame = append(r.frame, p...)
		if err := port.send(r.frame); err != nil {
			r.fatalf("%s: %v", dev.name, err)
		}
	}
}

var driverMAC = func() net.HardwareAddr {
	mac, err := net.ParseMAC(senderMAC)
	if err != nil {
		panic(err)
	}
	return mac
}()

// wait returns when there may be something to drain, or after d.
func (r *rig) wait(d time.Duration) {
	var fds []unix.PollFd
	for _, dev := range r.devices {
		for _, p := range dev.ports {
			fds = append(fds, unix.PollFd{Fd: int32(p.fd), Events: unix.POLLIN})
		}
	}
	waitAny(fds, d)
}

// drain takes all outputs that are there.
func (r *rig) drain() {
	r.t.Helper()
	for d, dev := range r.devices {
		for s, p := range dev.ports {
			for {
				frame, err := p.receive()
				if err != nil {
					r.fatalf("%s: %v", dev.name, err)
				}
				if frame == nil {
					break
				}
				r.take(d, output{side: side(s), frame: frame})
			}
		}
	}
}

// take puts an output to its input.
func (r *rig) take(d int, out output) {
	if !isIPv4(out.frame) {
		return // ARP for somebody who is not there
	}
	if isICMP(ipOf(out.frame), 11, 1) {
		return // comes when the timer for an incomplete packet says so
	}
	r.books.out(d, ipOf(out.frame))
	tag, owner := r.now.owners.attribute(out.frame)
	switch {
	case owner >= 0:
		out.frame = slices.Clone(out.frame)
		r.passed[d]++
		r.now.results[d][owner] = append(r.now.results[d][owner], out)
	case isSentinel(tag):
		for _, s := range r.now.sentinels {
			if s.tag == tag && s.out == out.side {
				r.now.passed[d][tag] = true
			}
		}
	case tag != 0:
		r.late[tag] = true
	default:
		out.frame = slices.Clone(out.frame)
		r.now.strays[d] = append(r.now.strays[d], out)
	}
}
