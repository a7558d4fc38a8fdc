package encap_test

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/stats"
)

// The tunnel of all tests, seen from the sending end; on the receiving end the
// addresses are swapped.
var (
	local  = netip.MustParseAddr("10.90.6.238")
	remote = netip.MustParseAddr("192.168.1.129")
)

// ipv4 describes a packet; zero fields give a small ping from 10.0.0.1 to
// 10.0.0.2 with TTL 64.
type ipv4 struct {
	src, dst string
	tos      uint8
	ttl      int // 0 is 64; -1 is 0, which is invalid on the wire
	proto    uint8
	id       uint16
	df       bool
	mf       bool
	offset   int    // of the fragment, in bytes
	options  []byte // a multiple of 4 bytes
	payload  []byte
}

// bytes builds the packet, with the right header checksum.
func (s ipv4) bytes() packet.IPv4 {
	hdrLen := packet.IPv4HdrLen + len(s.options)
	payload := s.payload
	if payload == nil {
		payload = []byte{8, 0, 0x54, 0x35, 0x12, 0x34, 0, 1, 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'}
	}
	p := packet.IPv4(make([]byte, hdrLen, hdrLen+len(payload)))
	p.InitHeader()
	p[0] = 4<<4 | byte(hdrLen/4)
	copy(p[packet.IPv4HdrLen:], s.options)
	p = append(p, payload...)

	p.SetTotalLength(len(p))
	p.SetTOS(s.tos)
	p.SetID(s.id)
	p[6], p[7] = byte(s.offset>>11), byte(s.offset>>3)
	if s.mf {
		p[6] |= 0x20
	}
	p.SetDF(s.df)
	p.SetTTL(uint8(s.ttl))
	switch s.ttl {
	case 0:
		p.SetTTL(64)
	case -1:
		p.SetTTL(0)
	}
	p.SetProtocol(max(s.proto, packet.ProtoICMP))
	p.SetSource(addr(s.src, "10.0.0.1"))
	p.SetDestination(addr(s.dst, "10.0.0.2"))
	p.UpdateChecksum()
	return p
}

func addr(s, fallback string) [4]byte {
	if s == "" {
		s = fallback
	}
	return netip.MustParseAddr(s).As4()
}

// putWord writes a 16-bit field for which the packet views have no setter.
func putWord(b []byte, at int, v uint16) {
	b[at], b[at+1] = byte(v>>8), byte(v)
}

// wrap puts a packet into an outer one as it arrives at the other end of the
// tunnel. The outer header is built here, not by the code under test.
func wrap(inner []byte) packet.IPv4 {
	return ipv4{src: local.String(), dst: remote.String(), proto: packet.ProtoIPIP, payload: inner}.bytes()
}

func wrapTOS(tos uint8, inner []byte) packet.IPv4 {
	outer := wrap(inner)
	outer.SetTOS(tos)
	outer.UpdateChecksum()
	return outer
}

func newEncapsulator(t testing.TB, o encap.Outer) *encap.Encapsulator {
	t.Helper()
	return newEncapsulatorOf(t, o, encap.NewIDs(), nil)
}

// newEncapsulatorOf sets the addresses of o, and the format unless there is one.
func newEncapsulatorOf(t testing.TB, o encap.Outer, ids *encap.IDs, host *encap.Host) *encap.Encapsulator {
	t.Helper()
	o.Local, o.Remote = local, remote
	if o.Format == (encap.Format{}) {
		o.Format = encap.IPIP
	}
	e, err := encap.NewEncapsulator(o, ids, host)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// newDecapsulator returns that of the receiving end.
func newDecapsulator(t testing.TB) *encap.Decapsulator {
	t.Helper()
	return newDecapsulatorOf(t, nil)
}

func newDecapsulatorOf(t testing.TB, host *encap.Host) *encap.Decapsulator {
	t.Helper()
	d, err := encap.NewDecapsulator(encap.Outer{Format: encap.IPIP, Local: remote, Remote: local}, host)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// mustEncap returns the outer header that e writes for inner.
func mustEncap(t testing.TB, e *encap.Encapsulator, inner packet.IPv4) packet.IPv4 {
	t.Helper()
	hdr := make([]byte, encap.IPIP.HdrLen)
	if v := e.Encap(hdr, inner); v != stats.Deliver {
		t.Fatalf("Encap = %v, want %v", v, stats.Deliver)
	}
	return packet.IPv4(hdr)
}

// mustDecap returns the inner packet that d finds in outer.
func mustDecap(t testing.TB, d *encap.Decapsulator, outer packet.IPv4) packet.IPv4 {
	t.Helper()
	inner, v := d.Decap(outer)
	if want := verdictOf(inner, outer); v != want {
		t.Fatalf("Decap = %v, want %v", v, want)
	}
	return inner
}

// verdictOf returns the verdict on a delivered packet: outer ECT is logged if the
// inner packet is not ECN-capable (R5).
func verdictOf(inner, outer packet.IPv4) stats.Reason {
	if len(inner) > 0 && inner.TOS()&3 == 0 && outer.TOS()&3 != 0 {
		return stats.DeliverNonECT
	}
	return stats.Deliver
}

// checkDrop fails unless d drops outer for the reason want, and returns no
// packet with it.
func checkDrop(t *testing.T, d *encap.Decapsulator, outer packet.IPv4, want stats.Reason) {
	t.Helper()
	inner, v := d.Decap(outer)
	if v != want {
		t.Errorf("Decap = %v, want %v", v, want)
	}
	if inner != nil {
		t.Errorf("%d bytes came with the verdict %v", len(inner), v)
	}
}

// checkNotEncapsulated fails unless e drops inner for the reason want, and
// does not write hdr.
func checkNotEncapsulated(t *testing.T, e *encap.Encapsulator, inner packet.IPv4, want stats.Reason) {
	t.Helper()
	untouched := bytes.Repeat([]byte{0xee}, encap.IPIP.HdrLen)
	hdr := bytes.Clone(untouched)
	if v := e.Encap(hdr, inner); v != want {
		t.Errorf("Encap = %v, want %v", v, want)
	}
	if !bytes.Equal(hdr, untouched) {
		t.Errorf("hdr was written: % x", hdr)
	}
}

func headerSum(p packet.IPv4) uint16 { return packet.Sum(p[:p.HdrLen()], 0) }

// unhex reads hex digits; everything from // to the end of a line is comment.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	var b []byte
	for line := range strings.Lines(s) {
		digits, _, _ := strings.Cut(line, "//")
		chunk, err := hex.DecodeString(strings.Join(strings.Fields(digits), ""))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		b = append(b, chunk...)
	}
	return b
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}
