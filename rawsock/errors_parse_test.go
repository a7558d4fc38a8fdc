package rawsock_test

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/rawsock"
)

// noOptions are IPv4 options without effect.
var noOptions = []byte{1, 1, 1, 1, 1, 1, 1, 1}

// newMessage returns a packet from the right host to the left one: destination
// unreachable, host unreachable, about a packet of the left one.
func newMessage() packet.IPv4 {
	return message(packet.ICMPUnreachable, packet.ICMPCodeHost, 0, []byte(quotedInner))
}

// message returns a packet from the right host to the left one, of protocol ICMP.
func message(icmpType, code uint8, mtu int, inner []byte) packet.IPv4 {
	quote := append(outer(leftEnd, 1400), inner...)
	p := append(outer(rightEnd, packet.ICMPHdrLen+len(quote)), make([]byte, packet.ICMPHdrLen)...)
	p.SetProtocol(packet.ProtoICMP)
	p = append(p, quote...)
	packet.ICMP(p.Payload()).InitError(icmpType, code, mtu)
	p.UpdateChecksum()
	return p
}

// icmpOf returns the ICMP message of a packet.
func icmpOf(p packet.IPv4) packet.ICMP { return packet.ICMP(p[p.HdrLen():]) }

// quoteOf returns what a message from newMessage or message quotes.
func quoteOf(p packet.IPv4) packet.IPv4 { return icmpOf(p).Quote() }

// finish makes lengths and checksums of a message right, which otherwise stays as it is.
func finish(p packet.IPv4) packet.IPv4 {
	p.SetTotalLength(len(p))
	m := icmpOf(p)
	if len(m) >= packet.ICMPHdrLen {
		m.InitError(m.Type(), m.Code(), m.MTU())
	}
	p.UpdateChecksum()
	return p
}

// withOptions adds noOptions to the header that begins at p[start:].
func withOptions(p packet.IPv4, start int) packet.IPv4 {
	end := start + packet.IPv4HdrLen
	p = bytes.Join([][]byte{p[:end], noOptions, p[end:]}, nil)
	p[start] += byte(len(noOptions) / 4)
	return p
}

// What stops a message that is not reported.
type stop int

const (
	byNone   stop = iota
	byFilter      // it does not reach the socket's buffer
	byParser
)

type messageTest struct {
	name string
	p    packet.IPv4
	stop stop
	want reported
}

// messageTests are messages from the right host to the left one.
func messageTests() []messageTest {
	const quoteAt = packet.IPv4HdrLen + packet.ICMPHdrLen
	inner := []byte(quotedInner)
	change := func(do func(p packet.IPv4)) packet.IPv4 {
		p := newMessage()
		do(p)
		return finish(p)
	}
	short := func(n int) packet.IPv4 { return finish(newMessage()[:n]) }
	wrongSum := newMessage()
	wrongSum[len(wrongSum)-1]++
	host := reported{packet.ICMPUnreachable, packet.ICMPCodeHost, 0, rightAddr.String(), quotedInner}
	is := func(change func(*reported)) reported {
		r := host
		change(&r)
		return r
	}
	return []messageTest{
		{"3/1", newMessage(), byNone, host},
		{"3/4", message(3, 4, 1400, inner), byNone, is(func(r *reported) { r.Code, r.MTU = 4, 1400 })},
		{"3/4 before RFC 1191", message(3, 4, 0, inner), byNone, is(func(r *reported) { r.Code = 4 })},
		{"3/1 with an MTU", message(3, 1, 1400, inner), byNone, host},
		{"3/15", message(3, 15, 0, inner), byNone, is(func(r *reported) { r.Code = 15 })},
		{"11/0", message(11, 0, 0, inner), byNone, is(func(r *reported) { r.Type, r.Code = 11, 0 })},
		{"11/4 has no MTU", message(11, 4, 1400, inner), byNone, is(func(r *reported) { r.Type, r.Code = 11, 4 })},
		{"shortest quote", short(quoteAt + 28), byNone, is(func(r *reported) { r.Inner = quotedInner[:8] })},
		{"outer options", finish(withOptions(newMessage(), 0)), byNone, host},
		{"quoted options", finish(withOptions(newMessage(), quoteAt)), byNone, host},
		{"options in both", finish(withOptions(withOptions(newMessage(), quoteAt), 0)), byNone, host},

		{"echo reply", message(0, 0, 0, inner), byFilter, reported{}},
		{"source quench", message(4, 0, 0, inner), byFilter, reported{}},
		{"redirect", message(5, 1, 0, inner), byFilter, reported{}},
		{"echo request", message(8, 0, 0, inner), byFilter, reported{}},
		{"parameter problem", message(12, 0, 0, inner), byFilter, reported{}},
		{"unknown type", message(40, 0, 0, inner), byParser, reported{}},
		{"unknown code", message(3, 16, 0, inner), byParser, reported{}},
		{"reassembly time exceeded", message(11, 1, 0, inner), byParser, reported{}},

		{"wrong checksum", wrongSum, byParser, reported{}},
		{"no ICMP header", finish(newMessage()[:packet.IPv4HdrLen+7]), byFilter, reported{}},
		{"no quote", short(quoteAt), byFilter, reported{}},
		{"quote of half a header", short(quoteAt + 19), byFilter, reported{}},
		{"quote of a header", short(quoteAt + 20), byParser, reported{}},
		{"quote too short", short(quoteAt + 27), byParser, reported{}},
		{"quote with options too short", finish(withOptions(newMessage(), quoteAt)[:quoteAt+28+7]), byParser, reported{}},
		{"quoted options cut", finish(withOptions(newMessage(), quoteAt)[:quoteAt+24]), byParser, reported{}},
		{"quote of version 6", change(func(p packet.IPv4) { quoteOf(p)[0] = 0x65 }), byParser, reported{}},
		{"quote with IHL 4", change(func(p packet.IPv4) { quoteOf(p)[0] = 0x44 }), byParser, reported{}},
		{"quote of UDP", change(func(p packet.IPv4) { quoteOf(p).SetProtocol(packet.ProtoUDP) }), byFilter, reported{}},
		{"quote from another host", change(func(p packet.IPv4) { quoteOf(p).SetSource(thirdAddr.As4()) }), byFilter, reported{}},
		{"quote to another host", change(func(p packet.IPv4) { quoteOf(p).SetDestination(thirdAddr.As4()) }), byFilter, reported{}},
		{"quote of the other direction", change(func(p packet.IPv4) {
			quoteOf(p).SetSource(rightAddr.As4())
			quoteOf(p).SetDestination(leftAddr.As4())
		}), byFilter, reported{}},
	}
}

// parse returns what is reported of a packet to the left host.
func parse(p packet.IPv4) (reported, bool) {
	e, ok := rawsock.ParseICMP(p, leftAddr, rightAddr)
	if !ok {
		return reported{}, false
	}
	return newReported(e), true
}

func TestE_ParseICMP(t *testing.T) {
	for _, tt := range messageTests() {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := parse(tt.p)
			if want := tt.stop == byNone; ok != want {
				t.Errorf("reported: %v, want %v", ok, want)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
	p := newMessage()
	for n := range len(p) {
		if got, ok := parse(p[:n]); ok {
			t.Errorf("of %d bytes that were cut to %d, reported: %+v", len(p), n, got)
		}
	}
	version6 := newMessage()
	version6[0] = 0x65
	if got, ok := parse(version6); ok {
		t.Errorf("of a packet of version 6, reported: %+v", got)
	}
	padded := append(newMessage(), "trailer"...)
	if got, ok := parse(padded); !ok || got.Inner != quotedInner {
		t.Errorf("with a trailer, reported: %+v, %v", got, ok)
	}
}

// The same messages on the wire. What the filters can stop does not reach the buffer.
func TestE_Filters(t *testing.T) {
	left, right := newPair(t)
	s := newErrorSocket(t, left, leftEnd)
	for _, tt := range messageTests() {
		t.Run(tt.name, func(t *testing.T) {
			sendMessage(t, left, right, tt.p, 1)
			if queued := s.Poll() != 0; queued != (tt.stop != byFilter) {
				t.Errorf("in the buffer: %v", queued)
			}
			want := []reported{hostUnreachable.report()} // which ends the call, if nothing else does
			if tt.stop == byNone {
				want = []reported{tt.want}
			} else {
				hostUnreachable.send(t, left, right)
			}
			var got []reported
			must(t, s.ReadErrors(func(e rawsock.ICMPError) { got = append(got, newReported(e)) }))
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
		})
	}
}

// Fragments arrive as one message, of which one longer than the buffer is ignored.
func TestE_LongMessage(t *testing.T) {
	left, right := newPair(t)
	s := newErrorSocket(t, left, leftEnd)
	const longest = 2048 - 2*packet.IPv4HdrLen - packet.ICMPHdrLen
	e := hostUnreachable
	for _, n := range []int{longest, longest + 1, 4000} {
		e.inner = bytes.Repeat([]byte{byte(n)}, n)
		e.send(t, left, right)
	}
	hostUnreachable.send(t, left, right)
	var got []reported
	must(t, s.ReadErrors(func(e rawsock.ICMPError) { got = append(got, newReported(e)) }))
	long := hostUnreachable.report()
	long.Inner = string(bytes.Repeat([]byte{longest & 0xff}, 576))
	if diff := cmp.Diff([]reported{long, hostUnreachable.report()}, got); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}

// sendMessage sends a packet n times from one host to the other, and returns when that
// one's kernel is done with them.
func sendMessage(t *testing.T, to, from *netlab.Host, p packet.IPv4, n int) {
	t.Helper()
	before := icmpReceived(t, to)
	must(t, from.Do(func() error { return writeMessage(p, n) }))
	labtest.WaitFor(t, "the ICMP message", func() bool { return icmpReceived(t, to) >= before+n })
}

// writeMessage sends a packet n times from this host.
func writeMessage(p packet.IPv4, n int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for range n {
		if err := unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: p.Destination()}); err != nil {
			return err
		}
	}
	return nil
}

// FuzzParseICMP: whatever is reported is in the packet, and about the tunnel.
func FuzzParseICMP(f *testing.F) {
	for _, tt := range messageTests() {
		f.Add([]byte(tt.p))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		before := b
		b = bytes.Clone(b)
		e, ok := rawsock.ParseICMP(b, leftAddr, rightAddr)
		if !bytes.Equal(b, before) {
			t.Fatal("the packet changed")
		}
		p := packet.IPv4(b)
		if !ok {
			if !p.Valid() || p.HdrLen() != packet.IPv4HdrLen || len(p.Payload()) < packet.ICMPHdrLen {
				return
			}
			// Random bytes have a wrong checksum.
			m := packet.ICMP(p.Payload())
			m.InitError(m.Type(), m.Code(), m.MTU())
			if e, ok = rawsock.ParseICMP(b, leftAddr, rightAddr); !ok {
				return
			}
		}
		if !p.Valid() {
			t.Fatal("reported from a packet that is not valid")
		}
		m := packet.ICMP(p.Payload())
		if !m.Valid() {
			t.Fatal("reported from a message with a wrong checksum")
		}
		if e.Type != m.Type() || e.Code != m.Code() || e.Type != packet.ICMPUnreachable && e.Type != packet.ICMPTimeExceeded {
			t.Errorf("type %d, code %d from % x", e.Type, e.Code, b)
		}
		if e.MTU != 0 && (e.Type != 3 || e.Code != 4 || e.MTU != m.MTU()) {
			t.Errorf("MTU %d from % x", e.MTU, b)
		}
		if e.Offender != netip.AddrFrom4(p.Source()) {
			t.Errorf("offender %v, want %v", e.Offender, p.Source())
		}
		quote := m.Quote()
		if !quote.HasHeader() || quote.Protocol() != packet.ProtoIPIP ||
			quote.Source() != leftAddr.As4() || quote.Destination() != rightAddr.As4() {
			t.Fatalf("about another packet: % x", quote)
		}
		if n := len(e.Inner); n < 8 || n > 576 || cap(e.Inner) != n || !bytes.HasPrefix(quote[quote.HdrLen():], e.Inner) {
			t.Errorf("% x, capacity %d, from the quote % x", e.Inner, cap(e.Inner), quote)
		}
	})
}
