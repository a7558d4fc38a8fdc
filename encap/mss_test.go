package encap_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"goipip/encap"
	"goipip/internal/packet"
)

// tcpOptions are a SYN's, with an MSS of 1460, as Linux writes them.
var tcpOptions = []byte{2, 4, 0x05, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7}

// syn returns a SYN with options, a multiple of 4 bytes, and n bytes of data.
func syn(s ipv4, options []byte, n int, state checksumState) packet.IPv4 {
	p := segment(s, packet.TCPHdrLen+len(options), n, none)
	tcp := packet.TCP(p.Payload())
	tcp.SetFlags(packet.TCPSyn)
	copy(tcp[packet.TCPHdrLen:], options)
	putChecksum(p, packet.TCPCsumOffset, state)
	return p
}

// transportSum is 0xffff for a right checksum, and the same before and after a change that is
// patched.
func transportSum(p packet.IPv4) uint16 {
	return packet.Sum(p.Payload(), packet.PseudoHeaderSum(p))
}

func TestClampMSS(t *testing.T) {
	const limit = 1340 // 0x053c
	flagged := func(flags uint8) packet.IPv4 {
		p := syn(ipv4{}, tcpOptions, 0, none)
		packet.TCP(p.Payload()).SetFlags(flags)
		putChecksum(p, packet.TCPCsumOffset, complete)
		return p
	}
	offset := func(words byte) packet.IPv4 {
		p := syn(ipv4{}, tcpOptions, 40, complete)
		p.Payload()[12] = words << 4
		return p
	}
	inBytes := func(at int, total int) packet.IPv4 { // cut, and claiming total bytes
		p := syn(ipv4{}, tcpOptions, 0, complete)[:at]
		p.SetTotalLength(total)
		return p
	}
	with := func(options ...byte) packet.IPv4 {
		for len(options)%4 != 0 {
			options = append(options, 0)
		}
		return syn(ipv4{}, options, 0, complete)
	}
	for name, c := range map[string]struct {
		p  packet.IPv4
		at int // where the limit is to stand in the TCP header; 0 for no change
	}{
		"SYN":                       {flagged(packet.TCPSyn), 22},
		"SYN and ACK":               {flagged(packet.TCPSyn | packet.TCPAck), 22},
		"SYN that offers ECN":       {flagged(packet.TCPSyn | packet.TCPEce | packet.TCPCwr), 22},
		"ACK":                       {flagged(packet.TCPAck), 0},
		"all flags but SYN":         {flagged(^uint8(packet.TCPSyn)), 0},
		"data":                      {syn(ipv4{}, tcpOptions, 100, complete), 22},
		"options of IP":             {syn(ipv4{options: []byte{0x94, 4, 0, 0, 7, 7, 4, 0, 0, 0, 0, 0}}, tcpOptions, 0, complete), 22},
		"longest headers":           {syn(ipv4{options: make([]byte, 40)}, append(bytes.Repeat([]byte{1}, 36), 2, 4, 5, 0xb4), 0, complete), 58},
		"first fragment":            {syn(ipv4{mf: true}, tcpOptions, 100, complete), 22},
		"later fragment":            {syn(ipv4{offset: 8}, tcpOptions, 100, complete), 0},
		"UDP":                       {datagram(ipv4{}, 100, complete), 0},
		"padding":                   {append(flagged(packet.TCPSyn), 2, 4, 5, 0xb4), 22},
		"MSS at an odd place":       {with(1, 2, 4, 0x05, 0xb4), 23},
		"MSS after others":          {with(4, 2, 3, 3, 7, 1, 1, 2, 4, 0x05, 0xb4), 29},
		"one more than the limit":   {with(2, 4, 0x05, 0x3d), 22},
		"the limit":                 {with(2, 4, 0x05, 0x3c), 0},
		"less than the limit":       {with(2, 4, 0x02, 0x18), 0},
		"0":                         {with(2, 4, 0, 0), 0},
		"65535":                     {with(2, 4, 0xff, 0xff), 22},
		"no MSS":                    {with(4, 2, 1, 1), 0},
		"no options":                {with(), 0},
		"MSS twice, as Linux does":  {with(2, 4, 0x05, 0xb4, 2, 4, 0x05, 0xb4), 22},
		"MSS after the end":         {with(0, 2, 4, 0x05, 0xb4), 0},
		"the end, as an option":     {with(0, 2, 2, 4, 0x05, 0xb4), 0},
		"MSS of 3 bytes":            {with(2, 3, 0x05, 2, 4, 0x05, 0xb4), 0},
		"MSS of 5 bytes":            {with(2, 5, 0x05, 0xb4, 0), 0},
		"MSS cut by the header":     {with(1, 1, 1, 1, 1, 2, 4, 0x05), 0},
		"option of 0 bytes":         {with(8, 0, 2, 4, 0x05, 0xb4), 0},
		"option of 1 byte":          {with(8, 1, 2, 4, 0x05, 0xb4), 0},
		"option beyond the header":  {with(8, 200, 2, 4, 0x05, 0xb4), 0},
		"option without a length":   {with(1, 1, 1, 8), 0},
		"MSS within another option": {with(8, 6, 2, 4, 0x05, 0xb4), 0},
		"data offset 0":             {offset(0), 0},
		"data offset 4":             {offset(4), 0},
		"data offset 5":             {offset(5), 0},
		"data offset 6":             {offset(6), 22},
		"no whole TCP header":       {inBytes(20+19, 20+19), 0},
		"options are cut":           {inBytes(20+39, 20+39), 0},
		"longer than it is":         {inBytes(20+40, 20+41), 0},
		"no TCP header":             {inBytes(20, 20), 0},
		"options beyond the packet": {inBytes(20+40, 20+38), 0},
		"version 6": {func() packet.IPv4 {
			p := flagged(packet.TCPSyn)
			p[0] = 0x65
			return p
		}(), 0},
		"IHL 4": {func() packet.IPv4 {
			p := flagged(packet.TCPSyn)
			p[0] = 0x44
			return p
		}(), 0},
	} {
		t.Run(name, func(t *testing.T) {
			before := packet.IPv4(bytes.Clone(c.p))
			encap.ClampMSS(c.p, limit, false)
			want := bytes.Clone(before)
			if c.at != 0 {
				putWord(want, c.p.HdrLen()+c.at, limit)
				csum := c.p.HdrLen() + packet.TCPCsumOffset
				copy(want[csum:csum+2], c.p[csum:])
				if got, was := transportSum(c.p), transportSum(before); got != was {
					t.Errorf("sums to %#04x, before %#04x", got, was)
				}
				if !c.p.HasSYN() {
					t.Error("HasSYN = false")
				}
			}
			if !bytes.Equal(c.p, want) {
				t.Errorf("got\n% x, want\n% x", c.p, want)
			}
		})
	}
}

// checkClamped fails unless ClampMSS has made p of before by changing, if anything, the MSS to
// a limit, and the checksum by that.
func checkClamped(t *testing.T, before, p packet.IPv4, limit uint16, partial bool) (changed bool) {
	t.Helper()
	var at []int
	for i := range p {
		if p[i] != before[i] {
			at = append(at, i)
		}
	}
	if len(at) == 0 {
		return false
	}
	csum := p.HdrLen() + packet.TCPCsumOffset
	var mss []int
	for _, i := range at {
		if i != csum && i != csum+1 {
			mss = append(mss, i)
		} else if partial {
			t.Fatalf("the partial checksum changed: % x, was % x", p, before)
		}
	}
	tcp := packet.TCP(p.Payload())
	if !p.HasSYN() || len(mss) == 0 || len(mss) > 2 || mss[0] < p.HdrLen()+packet.TCPHdrLen-1 || mss[len(mss)-1] >= p.HdrLen()+tcp.HdrLen() {
		t.Fatalf("bytes %v changed: % x, was % x", mss, p, before)
	}
	if got, _ := tcp.MSS(); got != limit {
		t.Fatalf("the MSS is %d, the limit %d: % x, was % x", got, limit, p, before)
	}
	if was, _ := packet.TCP(before.Payload()).MSS(); was <= limit {
		t.Fatalf("the MSS was raised from %d to %d", was, limit)
	}
	if got, want := transportSum(p), transportSum(before); !partial && got != want {
		t.Fatalf("sums to %#04x, before %#04x: % x, was % x", got, want, p, before)
	}
	return true
}

// Whatever options and checksum a SYN has, only its MSS and the checksum change, and never if
// the MSS is no more than the limit. A right checksum is right afterwards, a wrong one wrong,
// and a partial one is right when it is finished.
func TestClampMSS_Random(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	var clamped, partials int
	for range 5000 {
		var options []byte
		mss := uint16(r.Uint32())
		has := false
		for len(options) < 28 && r.IntN(6) > 0 {
			switch kind := r.IntN(5); {
			case kind == 0 && !has:
				has = true
				options = append(options, 2, 4, byte(mss>>8), byte(mss))
			case kind == 1:
				options = append(options, 1)
			default:
				n := 2 + r.IntN(9)
				options = append(append(options, byte(3+r.IntN(250)), byte(n)), randomBytes(r, n-2)...)
			}
		}
		for len(options)%4 != 0 {
			options = append(options, byte(r.IntN(2))) // the end, or no-operation
		}
		state := []checksumState{partial, complete, complete}[r.IntN(3)]
		p := syn(ipv4{options: make([]byte, 4*r.IntN(11)), df: r.IntN(2) == 0}, options, r.IntN(30), state)
		limit := uint16(r.Uint32())
		if r.IntN(4) == 0 {
			limit = mss + uint16(r.IntN(3)) - 1
		}
		before := packet.IPv4(bytes.Clone(p))
		encap.ClampMSS(p, limit, encap.Unfinished(p, tunMTU).NeedsCsum())
		changed := checkClamped(t, before, p, limit, state == partial)
		if want := has && mss > limit; changed != want {
			t.Fatalf("MSS %d (%v), limit %d: changed %v: % x", mss, has, limit, changed, before)
		}
		if changed {
			clamped++
		}
		if h := encap.Unfinished(p, tunMTU); h.NeedsCsum() {
			partials++
			packet.FinishChecksum(p, h)
		}
		if got := transportSum(p); got != 0xffff {
			t.Fatalf("sums to %#04x: % x, was % x", got, p, before)
		}
	}
	if clamped < 750 || partials < 750 {
		t.Errorf("%d clamped, %d partial: too few", clamped, partials)
	}
}

// The segments of a superpacket with SYN have the lower MSS, and right checksums.
func TestClampMSS_Superpacket(t *testing.T) {
	p := syn(ipv4{}, tcpOptions, 3000, partial)
	encap.ClampMSS(p, 1340, true)
	segments, ok := encap.Segment(p, superpacket(uint16(20+20+len(tcpOptions)), 20, 1200))
	if !ok {
		t.Fatal("no segments")
	}
	n := 0
	for ; ; n++ {
		hdr, payload := segments.Next(make([]byte, encap.MaxHdrLen))
		if hdr == nil {
			break
		}
		segment := append(hdr, payload...)
		if mss, _ := packet.TCP(segment.Payload()).MSS(); mss != 1340 || transportSum(segment) != 0xffff {
			t.Errorf("segment %d sums to %#04x, and has the MSS %d", n, transportSum(segment), mss)
		}
	}
	if n != 3 {
		t.Errorf("%d segments", n)
	}
}

func FuzzClampMSS(f *testing.F) {
	for _, p := range []packet.IPv4{
		syn(ipv4{}, tcpOptions, 0, complete),
		syn(ipv4{}, tcpOptions, 0, partial),
		syn(ipv4{options: []byte{1, 1, 1, 0}}, []byte{1, 2, 4, 0xff, 0xff, 0, 0, 0}, 9, complete),
		syn(ipv4{mf: true}, tcpOptions, 16, complete),
		syn(ipv4{offset: 8}, tcpOptions, 16, complete),
		syn(ipv4{}, []byte{8, 0, 2, 4, 5, 0xb4, 0, 0}, 0, complete),
		datagram(ipv4{}, 100, complete),
		ipv4{}.bytes(),
	} {
		f.Add([]byte(p), uint16(1340), false)
		f.Add([]byte(p[:len(p)-3]), uint16(0), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, limit uint16, partial bool) {
		if len(b) < packet.IPv4HdrLen {
			return
		}
		p, before := packet.IPv4(b), packet.IPv4(bytes.Clone(b))
		encap.ClampMSS(p, limit, partial)
		if !p.Valid() {
			if !bytes.Equal(p, before) {
				t.Errorf("% x changed to % x", before, p)
			}
			return
		}
		checkClamped(t, before, p, limit, partial)
		after := bytes.Clone(p)
		if encap.ClampMSS(p, limit, partial); !bytes.Equal(p, after) {
			t.Errorf("once more, % x changed to % x", after, p)
		}
	})
}

// BenchmarkClampMSS is what a tunnel that clamps does for packets of each kind.
func BenchmarkClampMSS(b *testing.B) {
	for name, p := range map[string]packet.IPv4{
		"data": segment(ipv4{}, 32, 1400, complete),
		"UDP":  datagram(ipv4{}, 1400, complete),
		"SYN":  syn(ipv4{}, tcpOptions, 0, complete),
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if p.HasSYN() {
					packet.TCP(p.Payload()).SetMSS(22, 1460)
					encap.ClampMSS(p, 1340, false)
				}
			}
		})
	}
}
