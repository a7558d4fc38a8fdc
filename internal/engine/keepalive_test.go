package engine_test

import (
	"bytes"
	"net/netip"
	"testing"

	"goipip/internal/engine"
	"goipip/internal/packet"
)

// reply returns what a host answers to an echo request.
func reply(request packet.IPv4) packet.IPv4 {
	p := packet.IPv4(bytes.Clone(request))
	p.SetSource(request.Destination())
	p.SetDestination(request.Source())
	m := packet.ICMP(p.Payload())
	m.InitEcho(packet.ICMPEchoReply, m.ID(), 1)
	p.UpdateChecksum()
	return p
}

// An echo request is complete, and only its reply is taken.
func TestKeepalive_Replies(t *testing.T) {
	from, to := netip.MustParseAddr("172.56.1.101"), netip.MustParseAddr("172.56.2.101")
	k := engine.NewKeepalive()
	request := k.Echo(make([]byte, engine.EchoLen), from, to, 1)
	if !request.Valid() || packet.Sum(request[:packet.IPv4HdrLen], 0) != 0xffff || !packet.ICMP(request.Payload()).Valid() ||
		request.Source() != from.As4() || request.Destination() != to.As4() || request.Protocol() != packet.ProtoICMP {
		t.Errorf("request %x", []byte(request))
	}
	other := engine.NewKeepalive().Echo(make([]byte, engine.EchoLen), from, to, 1)
	change := func(f func(packet.IPv4)) packet.IPv4 {
		p := reply(request)
		f(p)
		return p
	}
	for name, c := range map[string]struct {
		inner packet.IPv4
		want  bool
	}{
		"reply":              {reply(request), true},
		"request":            {request, false},
		"another's reply":    {reply(other), false},
		"another identifier": {change(func(p packet.IPv4) { m := packet.ICMP(p.Payload()); m.InitEcho(packet.ICMPEchoReply, m.ID()+1, 1) }), false},
		"fragment":           {change(func(p packet.IPv4) { p.SetFragment(0, true) }), false},
		"another protocol":   {change(func(p packet.IPv4) { p.SetProtocol(packet.ProtoUDP) }), false},
		"cut short":          {change(func(p packet.IPv4) { p.SetTotalLength(packet.IPv4HdrLen) }), false},
	} {
		k.Heard()
		for range 2 {
			if got := k.Took(c.inner); got != c.want {
				t.Errorf("%s: taken %v, want %v", name, got, c.want)
			}
		}
		if !k.Heard() || k.Heard() {
			t.Errorf("%s: heard is wrong", name)
		}
	}
}

// The first packet after a look is told once.
func TestKeepalive_First(t *testing.T) {
	k := engine.NewKeepalive()
	p := k.Echo(make([]byte, engine.EchoLen), netip.IPv4Unspecified(), netip.IPv4Unspecified(), 1)
	for range 2 {
		for range 3 {
			k.Took(p)
		}
		if n := len(k.First()); n != 1 {
			t.Errorf("told %d times", n)
		}
		<-k.First()
		k.Heard()
	}
}

func TestKeepaliveAllocs(t *testing.T) {
	k := engine.NewKeepalive()
	answer := reply(k.Echo(make([]byte, engine.EchoLen), netip.IPv4Unspecified(), netip.IPv4Unspecified(), 1))
	taken := 0
	if n := testing.AllocsPerRun(100, func() {
		if k.Took(answer) {
			taken++
		}
		k.Heard()
	}); n != 0 || taken == 0 {
		t.Errorf("%v allocations for each packet, %d taken", n, taken)
	}
}
