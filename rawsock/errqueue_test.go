package rawsock_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/ipv4"

	"goipip/internal/netlab/labtest"
	"goipip/rawsock"
)

// reported is what a handler is told about an ICMP error.
type reported struct {
	Type, Code uint8
	MTU        int
	Offender   string
	Inner      string
}

// handleICMP gives r a handler that passes on what it is told.
func handleICMP(t *testing.T, r *rawsock.Receiver) <-chan reported {
	t.Helper()
	errors := make(chan reported, 1<<12)
	must(t, r.HandleICMP(func(e rawsock.ICMPError) {
		errors <- reported{e.Type, e.Code, e.MTU, e.Offender.String(), string(bytes.Clone(e.Inner))}
	}))
	return errors
}

// report returns what a handler is to be told about an error from the right host.
func (e icmpError) report() reported {
	return reported{uint8(e.typ), uint8(e.code), int(e.mtu), rightAddr.String(), quotedInner}
}

// The handler hears of every error, also of those that no socket hears of by
// itself, while Receive waits and before it.
func TestE_HandleICMP(t *testing.T) {
	for _, e := range icmpErrors {
		t.Run(e.name, func(t *testing.T) {
			left, right := newPair(t)
			remote := newSender(t, right, rightEnd)
			waiting := newConnected(t, left, leftEnd)
			waitingErrors := handleICMP(t, waiting)
			received := startReceiving(waiting)
			busy := newConnected(t, left, leftEnd)
			busyErrors := handleICMP(t, busy)
			labtest.WaitParked(t, "rawsock.(*Receiver).Receive", 1)

			check := func(errors <-chan reported) {
				t.Helper()
				if diff := cmp.Diff(e.report(), labtest.Within(t, "the error", errors)); diff != "" {
					t.Errorf("error (-want +got):\n%s", diff)
				}
			}
			e.send(t, left, right)
			check(waitingErrors)
			remote.mustSend(t, "one")
			received.check(t, "one")
			e.send(t, left, right)
			e.send(t, left, right)
			remote.mustSend(t, "two")
			check(waitingErrors)
			check(waitingErrors)
			received.check(t, "two")

			startReceiving(busy).check(t, "one", "two")
			for range 3 {
				check(busyErrors)
			}
			if extra := len(waitingErrors) + len(busyErrors); extra > 0 {
				t.Errorf("%d errors too many", extra)
			}
		})
	}
}

// Many errors and many packets at once: none of either is lost, and each kind
// keeps its order.
func TestE_HandleMany(t *testing.T) {
	left, right := newPair(t)
	r := newConnected(t, left, leftEnd)
	errors := handleICMP(t, r)
	received := startReceiving(r)
	remote := newSender(t, right, rightEnd)
	const many = 300
	for i := range many {
		icmpErrors[i%len(icmpErrors)].send(t, left, right)
		remote.mustSend(t, fmt.Sprint(i))
	}
	for i := range many {
		received.check(t, fmt.Sprint(i))
		if diff := cmp.Diff(icmpErrors[i%len(icmpErrors)].report(), labtest.Within(t, "the error", errors)); diff != "" {
			t.Fatalf("error %d (-want +got):\n%s", i, diff)
		}
	}
}

// An error about another tunnel's packet is not this one's.
func TestE_OtherTunnel(t *testing.T) {
	left, right := newPair(t)
	must(t, right.AddAddr("eth0", secondAddr.String()+"/24"))
	r := newConnected(t, left, rawsock.Config{Local: leftAddr, Remote: secondAddr})
	errors := handleICMP(t, r)
	received := startReceiving(r)
	e := icmpError{typ: ipv4.ICMPTypeDestinationUnreachable, code: 1}
	e.send(t, left, right)
	newSender(t, right, rawsock.Config{Local: secondAddr, Remote: leftAddr}).mustSend(t, "after it")
	received.check(t, "after it")
	if len(errors) > 0 {
		t.Errorf("reported: %+v", <-errors)
	}
}

// Neither is one that comes before the receiver is connected.
func TestE_BeforeConnect(t *testing.T) {
	left, right := newPair(t)
	r := newReceiver(t, left, leftEnd)
	errors := handleICMP(t, r)
	received := startReceiving(r)
	remote := newSender(t, right, rightEnd)
	unreachable := icmpError{typ: ipv4.ICMPTypeDestinationUnreachable, code: 1}
	unreachable.send(t, left, right)
	remote.mustSend(t, "before")
	received.check(t, "before")
	if len(errors) > 0 {
		t.Errorf("reported: %+v", <-errors)
	}

	must(t, r.Connect())
	unreachable.send(t, left, right)
	if diff := cmp.Diff(unreachable.report(), labtest.Within(t, "the error", errors)); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

// A message quotes as much of the inner packet as its sender likes, and only the
// beginning is kept.
func TestE_Quote(t *testing.T) {
	left, right := newPair(t)
	r := newConnected(t, left, leftEnd)
	errors := handleICMP(t, r)
	startReceiving(r)
	for quoted, kept := range map[int]int{8: 8, 28: 28, 548: 548, 576: 576, 577: 576, 1400: 576} {
		inner := bytes.Repeat([]byte{byte(quoted)}, quoted)
		icmpError{typ: ipv4.ICMPTypeTimeExceeded, inner: inner}.send(t, left, right)
		if got := labtest.Within(t, "the error", errors).Inner; got != string(inner[:kept]) {
			t.Errorf("%d bytes quoted: %d bytes kept, want %d", quoted, len(got), kept)
		}
	}
}

// The kernel of this host reports it too, where the next hop does not answer.
func TestE_NoNeighbour(t *testing.T) {
	left, _ := newPair(t)
	must(t,
		left.Sysctl("net.ipv4.neigh.eth0.mcast_solicit", "1"),
		left.Sysctl("net.ipv4.neigh.eth0.retrans_time_ms", "10"),
	)
	nobody := rawsock.Config{Local: leftAddr, Remote: thirdAddr}
	r := newConnected(t, left, nobody)
	errors := handleICMP(t, r)
	startReceiving(r)
	newSender(t, left, nobody).mustSend(t, quotedInner)
	want := reported{Type: 3, Code: 1, Offender: leftAddr.String(), Inner: quotedInner}
	if diff := cmp.Diff(want, labtest.Within(t, "the error", errors)); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}
