package fastpath

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/tun"
)

// sends reports whether the program sends a packet, which is left to the engine otherwise.
func (s *site) sends(t *testing.T) bool {
	t.Helper()
	p := make(packet.IPv4, 100)
	p.InitHeader()
	p.SetTotalLength(len(p))
	p.SetDF(true)
	p.SetTTL(64)
	p.SetProtocol(packet.ProtoUDP)
	p.SetSource([4]byte{10, 0, 0, 1})
	p.SetDestination([4]byte{10, 0, 0, 2})
	p.UpdateChecksum()
	frame, _ := s.send(t, tun.Packet{Bytes: p}, unix.ETH_P_IP)
	return frame.Bytes != nil
}

// receives reports whether the program takes a packet of a plan.
func (s *site) receives(t *testing.T, p Plan) bool {
	t.Helper()
	inner := make(packet.IPv4, 40)
	inner.InitHeader()
	inner.SetTotalLength(len(inner))
	inner.SetTTL(64)
	inner.SetProtocol(packet.ProtoUDP)
	inner.SetSource([4]byte{10, 0, 0, 2})
	inner.SetDestination([4]byte{10, 0, 0, 1})
	inner.UpdateChecksum()
	outer := make(packet.IPv4, packet.IPv4HdrLen)
	outer.InitHeader()
	outer.SetTTL(64)
	outer.SetProtocol(packet.ProtoIPIP)
	outer.SetSource(p.Outer.Remote.As4())
	outer.SetDestination(p.Outer.Local.As4())
	outer.SetTotalLength(len(outer) + len(inner))
	outer.UpdateChecksum()
	frame := append(append([]byte{12: 0x08, 13: 0x00}, outer...), inner...)
	return s.receive(t, frame) == redirect
}

func (s *site) carries(t *testing.T, when string, p Plan, send, receive bool) {
	t.Helper()
	if got := s.sends(t); got != send {
		t.Errorf("%s: sends %v, want %v", when, got, send)
	}
	if got := s.receives(t, p); got != receive {
		t.Errorf("%s: receives %v, want %v", when, got, receive)
	}
}

func TestTunnel_Lifecycle(t *testing.T) {
	s := newSite(t)
	p := s.plan()
	s.carries(t, "without a plan", p, false, false)
	s.use(t, p)
	s.carries(t, "with one", p, true, true)
	s.tunnel.Hold(true)
	s.carries(t, "while held", p, false, true)
	s.use(t, p)
	s.tunnel.Hold(false)
	s.carries(t, "after that", p, true, true)
	s.tunnel.Stop()
	s.carries(t, "stopped", p, false, false)
	s.use(t, p)
	s.carries(t, "once more", p, true, true)

	other := p
	other.Outer.Remote = netip.MustParseAddr("198.51.100.2")
	s.use(t, other)
	s.carries(t, "to another remote address", other, true, true)
	if s.receives(t, p) {
		t.Error("the former remote address is still known")
	}
	other.SendOnly = true
	s.use(t, other)
	s.carries(t, "sending only", other, true, false)

	must(t, s.fast.SetAddresses([]netip.Addr{netip.MustParseAddr("10.0.0.2")}))
	s.use(t, p)
	s.carries(t, "from an own address", p, true, false)
	must(t, s.fast.SetAddresses(nil))
	s.carries(t, "which is gone", p, true, true)

	counted := s.tunnel.Stats()
	if counted.TX.Packets == 0 || counted.TX.Bytes != 100*counted.TX.Packets || counted.RX.Packets == 0 || counted.RX.Bytes != 40*counted.RX.Packets {
		t.Errorf("counted %+v", counted)
	}
	s.tunnel.Close()
	s.carries(t, "closed", p, false, false)
	if s.tunnel.Use(p) {
		t.Error("a closed tunnel has a plan")
	}
	if got := s.tunnel.Stats(); got != counted {
		t.Errorf("counted %+v, and %+v before Close", got, counted)
	}
	for dev, at := range map[int]ebpf.AttachType{s.device.Index(): ebpf.AttachTCXEgress, s.ether.Index: ebpf.AttachTCXIngress} {
		must(t, s.host.Do(func() error {
			found, err := link.QueryPrograms(link.QueryOptions{Target: dev, Attach: at})
			if err == nil && len(found.Programs) > 0 {
				t.Errorf("%v: %d programs are left", at, len(found.Programs))
			}
			return err
		}))
	}
}

// While the programs do not know all addresses of the host, they leave all packets to the engine.
func TestHost_TooManyAddresses(t *testing.T) {
	s := newSite(t)
	p := s.plan()
	s.use(t, p)
	var own []netip.Addr
	for a := netip.MustParseAddr("11.0.0.0"); len(own) <= int(s.fast.programs.Own.MaxEntries()); a = a.Next() {
		own = append(own, a)
	}
	if s.fast.SetAddresses(own) == nil {
		t.Fatal("more addresses than the map has room for, and no error")
	}
	s.carries(t, "with too many addresses", p, false, false)
	if s.tunnel.Use(p) {
		t.Error("the plan is used with too many addresses")
	}
	must(t, s.fast.SetAddresses(own[:1]))
	s.use(t, p)
	s.carries(t, "with fewer", p, true, true)
}

// A pair that went from one tunnel to another stays with that.
func TestTunnel_PairsChangeHands(t *testing.T) {
	s := newSite(t)
	p := s.plan()
	s.use(t, p)
	other, err := s.fast.Add(4711)
	must(t, err)
	defer other.Close()
	other.device = s.ether.Index // as if attached
	if !other.Use(p) {
		t.Fatal("the plan is not used")
	}
	s.tunnel.Stop()
	if !s.receives(t, p) {
		t.Error("the pair is gone with the tunnel that had it before")
	}
	other.device = 0
}

// A plan's memory is not used again within a second.
func TestTunnel_PlansRest(t *testing.T) {
	s := newSite(t)
	p := s.plan()
	now := time.Now()
	s.fast.now = func() time.Time { return now }
	plans := int(s.fast.programs.Plans.MaxEntries())
	for i := range plans {
		if p.Mark++; !s.tunnel.Use(p) {
			t.Fatalf("%d changes of %d plans", i, plans)
		}
	}
	now = now.Add(grace - 1)
	p.Mark++
	if s.tunnel.Use(p) {
		t.Error("a plan changes that a program may still read")
	}
	s.carries(t, "when there was none", p, false, false)
	now = now.Add(1)
	s.use(t, p)
	s.carries(t, "later", p, true, true)
}

// A device that was deleted and made again, with its former index, is attached once more.
func TestTunnel_DeviceMadeAgain(t *testing.T) {
	s := newSite(t)
	d0 := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "d0", Index: 77}, PeerName: "d1"}
	must(t, s.host.Netlink().LinkAdd(d0))
	must(t, s.host.Do(func() error { return s.tunnel.Attach(77) }))
	if !s.tunnel.Attached(77) || s.tunnel.Attached(s.ether.Index) {
		t.Error("another device than d0 is attached")
	}
	must(t, s.host.DeleteLink("d0"))
	if s.tunnel.Attached(77) {
		t.Error("a device that is gone is attached")
	}
	must(t, s.host.Netlink().LinkAdd(d0))
	must(t, s.host.Do(func() error { return s.tunnel.Attach(77) }))
	if !s.tunnel.Attached(77) {
		t.Error("d0 is not attached")
	}
	must(t, s.host.DeleteLink("d0"))
	if err := s.host.Do(func() error { return s.tunnel.Attach(77) }); err == nil {
		t.Error("a device that is not there can be attached")
	}
}

// Programs of others that come after the tunnel's own would miss its packets.
func TestTunnel_Others(t *testing.T) {
	s := newSite(t)
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "other", Type: ebpf.SchedCLS, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	must(t, err)
	defer program.Close()
	others := func() (found string) {
		must(t, s.host.Do(func() error { found = s.tunnel.Others(); return nil }))
		return found
	}
	if found := others(); found != "" {
		t.Errorf("found %q", found)
	}
	for want, o := range map[string]link.TCXOptions{
		"on the link":   {Interface: s.device.Index(), Attach: ebpf.AttachTCXEgress},
		"on the device": {Interface: s.ether.Index, Attach: ebpf.AttachTCXIngress},
		"":              {Interface: s.ether.Index, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()},
	} {
		o.Program = program
		var l link.Link
		must(t, s.host.Do(func() (err error) { l, err = link.AttachTCX(o); return err }))
		if found := others(); !strings.HasPrefix(found, want) || want == "" && found != "" {
			t.Errorf("found %q, want %q", found, want)
		}
		must(t, l.Close())
	}
	second, err := func() (h *Host, err error) {
		err = s.host.Do(func() (err error) { h, err = Open(); return err })
		return h, err
	}()
	must(t, err)
	defer second.Close()
	neighbour, err := second.Add(s.device.Index())
	must(t, err)
	defer neighbour.Close()
	must(t, s.host.Do(func() error { return neighbour.Attach(s.ether.Index) }))
	if found := others(); found != "" {
		t.Errorf("another goipip counts: %q", found)
	}
}

// The programs load with the capabilities that README.md names, and no others.
func TestCapabilities(t *testing.T) {
	labtest.Need(t, "setpriv")
	if os.Getenv("GOIPIP_ONLY_LOAD") != "" {
		h, err := Open()
		must(t, err)
		h.Close()
		return
	}
	for _, c := range []struct {
		caps string
		ok   bool
	}{
		{"+bpf,+net_admin", true},
		{"+net_admin,+net_raw", false},
	} {
		cmd := exec.Command("setpriv", "--bounding-set=-all,"+c.caps, os.Args[0], "-test.run=^TestCapabilities$")
		cmd.Env = append(os.Environ(), "GOIPIP_ONLY_LOAD=1")
		out, err := cmd.CombinedOutput()
		if (err == nil) != c.ok || !c.ok && !strings.Contains(string(out), "CAP_BPF") {
			t.Errorf("with %s: %v: %s", c.caps, err, out)
		}
	}
}
