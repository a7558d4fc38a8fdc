package tunnel_test

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
)

// icmpError is an ICMP error as it was captured.
type icmpError struct {
	src, dst   string
	typ, code  int
	mtu        int
	tos, total int
	quote      []byte
	sound      bool // checksums, no fragment
}

// String names the error as in SPEC.md.
func (e icmpError) String() string { return fmt.Sprintf("%d/%d", e.typ, e.code) }

// parseICMPError returns false for all else.
func parseICMPError(p netlab.Captured) (e icmpError, ok bool) {
	hdr, err := ipv4.ParseHeader(p.Data)
	if err != nil || hdr.Protocol != unix.IPPROTO_ICMP || hdr.FragOff != 0 || len(p.Data) < hdr.Len+8 {
		return e, false
	}
	m := p.Data[hdr.Len:]
	e = icmpError{
		src: hdr.Src.String(), dst: hdr.Dst.String(),
		typ: int(m[0]), code: int(m[1]), mtu: int(m[6])<<8 | int(m[7]),
		tos: hdr.TOS, total: len(p.Data), quote: m[8:],
		sound: packet.Sum(p.Data[:hdr.Len], 0) == 0xffff && packet.Sum(m, 0) == 0xffff && hdr.TotalLen == len(p.Data) && hdr.Flags == 0,
	}
	return e, packet.IsICMPError(uint8(e.typ))
}

// icmpErrors returns those that a capture on a link has seen come in.
func icmpErrors(c *netlab.Capture) (errs []icmpError) {
	for _, p := range c.Packets() {
		if e, ok := parseICMPError(p); ok && !p.Outgoing {
			errs = append(errs, e)
		}
	}
	return errs
}

// waitICMPError returns the first that matches.
func waitICMPError(t testing.TB, c *netlab.Capture, match func(icmpError) bool) icmpError {
	t.Helper()
	p, err := c.Wait(labtest.Context(t), func(p netlab.Captured) bool {
		e, ok := parseICMPError(p)
		return ok && !p.Outgoing && match(e)
	})
	must(t, err)
	e, _ := parseICMPError(p)
	return e
}

// outgoing returns the packet that e is about, as a capture on a link saw it on its
// way into the tunnel.
func outgoing(t testing.TB, c *netlab.Capture, e icmpError) netlab.Captured {
	t.Helper()
	p, err := c.Wait(labtest.Context(t), func(p netlab.Captured) bool {
		return p.Outgoing && bytes.Equal(p.Data[4:6], e.quote[4:6]) // the ID
	})
	must(t, err)
	return p
}

// check fails the test unless e is what goipip tells the sender of a packet (G7).
func (e icmpError) check(t testing.TB, p netlab.Captured) {
	t.Helper()
	about := bytes.Clone(p.Data)
	if p.CsumPartial && about[9] == unix.IPPROTO_UDP && len(about) > 28 && len(e.quote) > 28 {
		copy(about[26:28], e.quote[26:28]) // which goipip has to finish
	}
	if !e.sound {
		t.Errorf("%v: a checksum or a length is wrong", e)
	}
	src, dst := netip.AddrFrom4([4]byte(about[16:20])).String(), netip.AddrFrom4([4]byte(about[12:16])).String()
	if e.src != src || e.dst != dst {
		t.Errorf("%v from %s to %s, want from %s to %s", e, e.src, e.dst, src, dst)
	}
	if want := min(28+len(about), 576); e.total != want {
		t.Errorf("%v of %d bytes about a packet of %d, want %d", e, e.total, len(about), want)
	}
	if len(e.quote) > len(about) || !bytes.Equal(e.quote, about[:len(e.quote)]) {
		t.Errorf("%v quotes\n% x…, the packet is\n% x…", e, e.quote[:min(64, len(e.quote))], about[:min(64, len(about))])
	}
}

// sendICMPErrors sends from a router, n times, the error typ/code about a packet
// of the tunnel from s to far. gateway is the second word of the message.
func (s *site) sendICMPErrors(t testing.TB, router *netlab.Host, far *site, n, typ, code, gateway int) {
	t.Helper()
	quoted := echoReply(s.inner, far.inner, 64)[:28]
	s.sendRouterErrors(t, router, far, n, routerError{typ, code, gateway, quoted})
}

// routerError is an ICMP error about a packet of the tunnel.
type routerError struct {
	typ, code int
	word      int         // the second of the message
	inner     packet.IPv4 // the start of it
}

func (s *site) sendRouterErrors(t testing.TB, router *netlab.Host, far *site, n int, e routerError) {
	t.Helper()
	quoted := packet.IPv4(make([]byte, packet.IPv4HdrLen))
	quoted.InitHeader()
	quoted.SetTotalLength(len(quoted) + 1400)
	quoted.SetTTL(9)
	quoted.SetDF(true)
	quoted.SetProtocol(packet.ProtoIPIP)
	quoted.SetSource(s.outer.As4())
	quoted.SetDestination(far.outer.As4())
	quoted.UpdateChecksum()
	word := []byte{byte(e.word >> 24), byte(e.word >> 16), byte(e.word >> 8), byte(e.word)}
	message := icmp.Message{Type: ipv4.ICMPType(e.typ), Code: e.code, Body: &icmp.RawBody{
		Data: slices.Concat(word, quoted, e.inner),
	}}
	b, err := message.Marshal(nil)
	must(t, err)
	must(t, router.Do(func() error {
		c, err := net.DialIP("ip4:icmp", nil, &net.IPAddr{IP: s.outer.AsSlice()})
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
}

// echoReply returns a packet of n bytes that makes a host do nothing: the answer to
// a ping that nobody sent.
func echoReply(src, dst netip.Addr, n int) packet.IPv4 {
	p := packet.IPv4(make([]byte, n))
	p.InitHeader()
	p.SetTotalLength(n)
	p.SetID(uint16(n))
	p.SetTTL(64)
	p.SetProtocol(packet.ProtoICMP)
	p.SetSource(src.As4())
	p.SetDestination(dst.As4())
	p.UpdateChecksum()
	m := p.Payload()
	sum := ^packet.Sum(m, 0)
	m[2], m[3] = byte(sum>>8), byte(sum)
	return p
}
