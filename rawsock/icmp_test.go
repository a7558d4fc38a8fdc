package rawsock_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/stats"
)

// ICMP errors that the right host sends about what the left one sent (E).

// icmpError is an ICMP error, and what a connected raw socket makes of it.
type icmpError struct {
	name string
	typ  ipv4.ICMPType
	code int
	mtu  uint16        // RFC 1191, in bytes
	hard syscall.Errno // 0: the socket gets none (raw_err in net/ipv4/raw.c)
	// inner is what the message quotes of the inner packet; nil for quotedInner.
	inner []byte
	about config // the tunnel whose packet it is about; leftEnd if it is zero
}

const quotedInner = "the first bytes of the inner packet"

var icmpErrors = []icmpError{
	{name: "3/0 net unreachable", typ: ipv4.ICMPTypeDestinationUnreachable, code: 0},
	{name: "3/1 host unreachable", typ: ipv4.ICMPTypeDestinationUnreachable, code: 1},
	{name: "3/2 protocol unreachable", typ: ipv4.ICMPTypeDestinationUnreachable, code: 2, hard: unix.ENOPROTOOPT},
	{name: "3/3 port unreachable", typ: ipv4.ICMPTypeDestinationUnreachable, code: 3, hard: unix.ECONNREFUSED},
	{name: "3/4 frag needed", typ: ipv4.ICMPTypeDestinationUnreachable, code: 4, mtu: 1400, hard: unix.EMSGSIZE},
	{name: "3/13 prohibited", typ: ipv4.ICMPTypeDestinationUnreachable, code: 13, hard: unix.EHOSTUNREACH},
	{name: "11/0 ttl exceeded", typ: ipv4.ICMPTypeTimeExceeded, code: 0},
	{name: "12/0 parameter problem", typ: ipv4.ICMPTypeParameterProblem, code: 0, hard: unix.EPROTO},
}

// send sends the error from one host to the other, about a packet that it has sent, and
// returns when its kernel is done with it.
func (e icmpError) send(t *testing.T, to, from *netlab.Host) {
	t.Helper()
	e.sendMany(t, to, from, 1)
}

// sendMany sends it n times.
func (e icmpError) sendMany(t *testing.T, to, from *netlab.Host, n int) {
	t.Helper()
	inner := e.inner
	if inner == nil {
		inner = []byte(quotedInner)
	}
	about := e.about
	if about == (config{}) {
		about = leftEnd
	}
	quoted := append(outer(about, 1400), inner...)
	message := icmp.Message{Type: e.typ, Code: e.code, Body: &icmp.RawBody{
		Data: append([]byte{0, 0, byte(e.mtu >> 8), byte(e.mtu)}, quoted...),
	}}
	b, err := message.Marshal(nil)
	must(t, err)
	before := icmpReceived(t, to)
	must(t, from.Do(func() error {
		c, err := net.DialIP("ip4:icmp", nil, &net.IPAddr{IP: about.Local.AsSlice()})
		if err != nil {
			return err
		}
		defer c.Close()
		for range n {
			if _, err := c.Write(b); err != nil {
				return err
			}
		}
		return nil
	}))
	labtest.WaitFor(t, "the ICMP error", func() bool { return icmpReceived(t, to) >= before+n })
}

// icmpReceived returns how many ICMP messages the host has received.
func icmpReceived(t *testing.T, h *netlab.Host) int {
	t.Helper()
	return icmpCounter(t, h, "InMsgs")
}

// icmpSent returns how many times the host has said that a destination is unreachable.
func icmpSent(t *testing.T, h *netlab.Host) int {
	t.Helper()
	return icmpCounter(t, h, "OutDestUnreachs")
}

func icmpCounter(t *testing.T, h *netlab.Host, name string) (n int) {
	t.Helper()
	must(t, h.Do(func() error {
		snmp, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		var names []string
		for line := range strings.Lines(string(snmp)) {
			fields, ok := strings.CutPrefix(line, "Icmp: ")
			if !ok {
				continue
			}
			if names == nil {
				names = strings.Fields(fields)
				continue
			}
			if i := slices.Index(names, name); i >= 0 {
				n, err = strconv.Atoi(strings.Fields(fields)[i])
				return err
			}
		}
		return fmt.Errorf("no counter Icmp %s:\n%s", name, snmp)
	}))
	return n
}

// newWitness returns a plain raw socket with a receiver's addresses, which shows
// what the kernel does to such sockets.
func newWitness(t *testing.T, h *netlab.Host, cfg config) *net.IPConn {
	t.Helper()
	var c *net.IPConn
	must(t, h.Do(func() (err error) {
		c, err = net.DialIP("ip4:4", &net.IPAddr{IP: cfg.Local.AsSlice()}, &net.IPAddr{IP: cfg.Remote.AsSlice()})
		return err
	}))
	t.Cleanup(func() { c.Close() })
	must(t, c.SetReadDeadline(time.Now().Add(deadline)))
	return c
}

// No error ends or stalls a receiver, whether it waits or not, or costs it a
// packet; and the sender does not notice.
func TestE_ReceiverGoesOn(t *testing.T) {
	for _, e := range icmpErrors {
		t.Run(e.name, func(t *testing.T) {
			left, right := newPair(t)
			s := newSender(t, left, leftEnd)
			waiting := startReceiving(newConnected(t, left, leftEnd))
			busy := newConnected(t, left, leftEnd)
			witness := newWitness(t, left, leftEnd)
			remote := newSender(t, right, rightEnd)
			there := startReceiving(newConnected(t, right, rightEnd))
			labtest.WaitParked(t, "rawsock.(*Receiver).Receive", 2)

			e.send(t, left, right)
			if e.hard != 0 {
				if _, err := witness.Read(make([]byte, 1<<16)); !errors.Is(err, e.hard) {
					t.Fatalf("a raw socket gets %v, want %v", err, e.hard)
				}
			}
			remote.mustSend(t, "one")
			waiting.check(t, "one")
			s.mustSend(t, "still sending")
			there.check(t, "still sending")

			e.send(t, left, right)
			e.send(t, left, right)
			remote.mustSend(t, "two", "three")
			e.send(t, left, right)
			remote.mustSend(t, "four")
			e.send(t, left, right)
			waiting.check(t, "two", "three", "four")
			startReceiving(busy).check(t, "one", "two", "three", "four")
			s.mustSend(t, "still sending")
			there.check(t, "still sending")
		})
	}
}

// A path MTU that a router told about holds for what is sent from then on.
func TestE_FragNeeded(t *testing.T) {
	left, right := newPair(t)
	s := newSender(t, left, leftEnd)
	newConnected(t, left, leftEnd) // by which the kernel takes the error for its own
	g := startReceiving(newConnected(t, right, rightEnd))
	fits, large := strings.Repeat("x", 980), strings.Repeat("x", 981)
	s.mustSend(t, large)
	g.check(t, large)

	icmpError{typ: ipv4.ICMPTypeDestinationUnreachable, code: 4, mtu: 1000}.send(t, left, right)
	s.send(t, fits, large, fits, large)
	want := []refusal{{1, stats.TooBig}, {3, stats.TooBig}}
	if diff := cmp.Diff(want, s.refusals); diff != "" {
		t.Errorf("refusals (-want +got):\n%s", diff)
	}
	g.check(t, fits, fits)

	// Without DF the kernel fragments, as it does not for the device's own MTU.
	s.refusals = nil
	p := outer(leftEnd, len(large))
	p.SetDF(false)
	s.Add(p, []byte(large))
	must(t, s.Flush())
	g.check(t, large)
	if len(s.refusals) > 0 {
		t.Errorf("refusals without DF: %+v", s.refusals)
	}
}

// An ICMP error that waits on the sender's socket, as any host can bring about, costs no
// packet: the one that met it is sent again, and the ones behind it are sent.
func TestHazard2_SenderIgnoresICMP(t *testing.T) {
	for _, e := range icmpErrors {
		t.Run(e.name, func(t *testing.T) {
			left, right := newPair(t)
			s := newSender(t, left, leftEnd)
			must(t, left.Do(func() error { return s.HearICMP(leftEnd.pair()) }))
			there := startReceiving(newConnected(t, right, rightEnd))
			for range 3 {
				e.send(t, left, right)
				s.mustSend(t, "one", "two", "three")
				there.check(t, "one", "two", "three")
			}
		})
	}
}
