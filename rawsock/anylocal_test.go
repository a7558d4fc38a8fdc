package rawsock_test

import (
	"fmt"
	"net/netip"
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/rawsock"
)

// Pairs for any local address.

// anyEnd is the right end of a tunnel without a local address.
var anyEnd = config{Remote: leftAddr}

// twoAddresses returns two hosts, of which the right one has secondAddr too, and senders
// from the left one to both.
func twoAddresses(t *testing.T) (left, right *netlab.Host, senders [2]*sender) {
	t.Helper()
	left, right = newPair(t)
	must(t, right.AddAddr("eth0", secondAddr.String()+"/24"))
	ping(t, left, secondAddr)
	for i, to := range []netip.Addr{rightAddr, secondAddr} {
		senders[i] = newSender(t, left, config{Local: leftAddr, Remote: to})
	}
	return left, right, senders
}

// R2, O11: with any local address, packets to each are received, by receivers of a share
// too, and none from another source. Connect leaves it so.
func TestR2_O11_AnyLocal(t *testing.T) {
	for _, credit := range []bool{true, false} {
		for _, shares := range []int{1, 3} {
			t.Run(fmt.Sprint("credit=", credit, ",shares=", shares), func(t *testing.T) {
				if credit {
					labtest.Need(t, "bpf")
				} else {
					defer rawsock.WithoutCredit()()
				}
				left, right, senders := twoAddresses(t)
				must(t, left.AddAddr("lo", far.String()+"/32"))
				stranger := newSender(t, left, config{Local: far, Remote: rightAddr})
				receivers := make([]*receiver, shares)
				for i := range receivers {
					receivers[i] = newShareReceiver(t, right, anyEnd, i, shares)
				}
				round := func(want int) {
					t.Helper()
					stranger.mustSend(t, "from another source")
					for i, s := range senders {
						s.mustSend(t, fmt.Sprint("first to ", i), fmt.Sprint("second to ", i))
					}
					got := 0
					for _, r := range receivers {
						for _, p := range drain(t, r) {
							if p.Source() != leftAddr.As4() {
								t.Errorf("received %q", p.Payload())
							}
							got++
						}
					}
					if got != want {
						t.Errorf("%d packets received, want %d", got, want)
					}
				}
				round(4)
				for _, r := range receivers {
					must(t, r.Connect(), r.Connect())
				}
				round(4)
				if !credit {
					return // with several pairs, such receivers take all packets
				}
				// Beside a pair with one of the addresses, and without it again.
				exact := config{Local: rightAddr, Remote: leftAddr}
				for _, r := range receivers {
					must(t, r.Add(exact.pair()), r.Connect())
				}
				round(4)
				for _, r := range receivers {
					must(t, r.Remove(anyEnd.pair()))
				}
				round(2)
				for _, r := range receivers {
					must(t, right.Do(func() error { return r.Receiver.Connect(exact.route()) }))
				}
				round(2)
				for _, r := range receivers {
					must(t, right.Do(func() error { return r.Add(anyEnd.pair()) }), r.Remove(exact.pair()))
				}
				round(4)
			})
		}
	}
}

// What finds no room is counted for the pair that it is for: the one with its local
// address, or else the one for any.
func TestHazard12_O11_PairDrops(t *testing.T) {
	labtest.Need(t, "bpf")
	for _, both := range []bool{false, true} {
		_, right, senders := twoAddresses(t)
		r := newReceiver(t, right, anyEnd)
		exact := config{Local: rightAddr, Remote: leftAddr}
		if both {
			must(t, r.Add(exact.pair()))
		}
		const packets = 8000
		floodPairs(t, senders[:], packets)
		received := map[[4]byte]uint64{}
		for _, p := range drain(t, r) {
			received[p.Destination()]++
		}
		first, second := received[rightAddr.As4()], received[secondAddr.As4()]
		ofExact, ofAny := r.PairDrops(exact.pair()), r.PairDrops(anyEnd.pair())
		if first == 0 || second == 0 || ofAny == 0 {
			t.Fatalf("received %v, dropped %d: the test tests nothing", received, ofAny)
		}
		if both && (first+ofExact != packets || second+ofAny != packets) || !both && first+second+ofAny != 2*packets {
			t.Errorf("both %v: received %d and %d of %d, dropped %d of the exact pair and %d of any", both, first, second, packets, ofExact, ofAny)
		}
		if n := r.Drops(); n != 0 {
			t.Errorf("%d drops of no pair", n)
		}
	}
}

// A guard for any local address keeps the kernel silent about each.
func TestHazard11_O11_Guard(t *testing.T) {
	defer rawsock.WithoutCredit()()
	_, right, senders := twoAddresses(t)
	must(t, right.Sysctl("net.ipv4.icmp_ratelimit", "0"))
	r := newReceiver(t, right, anyEnd)
	g := newConnectedGuard(t, right, config{Local: rightAddr, Remote: leftAddr})
	must(t, right.Do(func() error { return g.Guard.Connect(anyEnd.pair(), anyEnd.route()) }))
	for i, s := range senders {
		before, drops := icmpSent(t, right), r.drops()
		flood(t, s, 12000)
		if r.drops() == drops {
			t.Fatal("no overload: the test tests nothing")
		}
		if n := icmpSent(t, right) - before; n != 0 {
			t.Errorf("the kernel has sent %d ICMP errors about packets to address %d", n, i)
		}
	}
}

// E, O11: errors about packets from each local address are reported, with that address, and
// none about packets to another host.
func TestE_O11_AnyLocal(t *testing.T) {
	left, right := newPair(t)
	must(t, left.AddAddr("eth0", secondAddr.String()+"/24"))
	s := newErrorSocket(t, left, config{Remote: rightAddr})
	for _, about := range []config{{Local: leftAddr, Remote: far}, leftEnd, {Local: secondAddr, Remote: rightAddr}, {Local: secondAddr, Remote: far}} {
		e := hostUnreachable
		e.about, e.inner = about, []byte(about.Local.String()+" says")
		e.send(t, left, right)
	}
	var got []netip.Addr
	for s.Poll() != 0 {
		must(t, s.ReadErrors(func(e rawsock.ICMPError) {
			if e.Pair.Remote != rightAddr || string(e.Inner) != e.Pair.Local.String()+" says" {
				t.Errorf("%q is about %v", e.Inner, e.Pair)
			}
			got = append(got, e.Pair.Local)
		}))
	}
	if len(got) != 2 || got[0] != leftAddr || got[1] != secondAddr {
		t.Errorf("reported errors about packets from %v", got)
	}
}

// O11: a Prober tells the source that a route has, by its device too.
func TestO11_ProbedSource(t *testing.T) {
	l := newTwoLinks(t)
	p := newProber(t, l.left)
	source := func(cfg config) (source netip.Addr) {
		t.Helper()
		must(t, l.left.Do(func() (err error) {
			_, source, err = p.Path(rawsock.Route{Local: cfg.Local, Remote: cfg.Remote, Device: cfg.Device})
			return err
		}))
		return source
	}
	cfg := config{Remote: l.cfg.Remote}
	first := source(cfg)
	cfg.Device = deviceIndex(t, l.left, "eth1")
	second := source(cfg)
	if !first.Is4() || !second.Is4() || first == second {
		t.Errorf("sources %v and %v", first, second)
	}
	if got := source(l.cfg); got != l.cfg.Local {
		t.Errorf("source %v from %v", got, l.cfg.Local)
	}
	cfg.Device = 0
	if got := source(cfg); got != first {
		t.Errorf("source %v, %v before", got, first)
	}
}
