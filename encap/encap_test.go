package encap_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/encap"
	"goipip/internal/packet"
	"goipip/internal/stats"
)

func TestNewEncapsulator_Addresses(t *testing.T) {
	v6 := netip.MustParseAddr("2001:db8::1")
	tests := []struct {
		name          string
		local, remote netip.Addr
		names         string // what the error must name; "" is no error
	}{
		{"both", local, remote, ""},
		{"local missing", netip.Addr{}, remote, "local"},
		{"remote missing", local, netip.Addr{}, "remote"},
		{"local IPv6", v6, remote, v6.String()},
		{"remote IPv6", local, v6, v6.String()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := encap.Outer{Format: encap.IPIP, Local: tt.local, Remote: tt.remote}
			e, err := encap.NewEncapsulator(o, encap.NewIDs(), nil)
			checkAddressError(t, err, tt.names)
			if (e == nil) != (err != nil) {
				t.Errorf("Encapsulator %v with error %v", e, err)
			}
			d, err := encap.NewDecapsulator(o, nil)
			checkAddressError(t, err, tt.names)
			if (d == nil) != (err != nil) {
				t.Errorf("Decapsulator %v with error %v", d, err)
			}
		})
	}
}

func checkAddressError(t *testing.T, err error, names string) {
	t.Helper()
	switch {
	case names == "" && err != nil:
		t.Errorf("error %v", err)
	case names != "" && err == nil:
		t.Errorf("no error, want one that names %q", names)
	case names != "" && !strings.Contains(err.Error(), names):
		t.Errorf("error %q does not name %q", err, names)
	}
}

func TestT1_NotAnIPv4Packet(t *testing.T) {
	whole := ipv4{}.bytes()
	change := func(f func(packet.IPv4)) packet.IPv4 {
		p := packet.IPv4(bytes.Clone(whole))
		f(p)
		return p
	}
	tests := []struct {
		name  string
		inner packet.IPv4
		want  stats.Reason
	}{
		{"IPv6", append(packet.IPv4{0x60}, make([]byte, 47)...), stats.NotIPv4},
		{"IPv6, cut to one byte", packet.IPv4{0x60}, stats.NotIPv4},
		{"version 0", change(func(p packet.IPv4) { p[0] = 0x05 }), stats.NotIPv4},
		{"version 5", change(func(p packet.IPv4) { p[0] = 0x55 }), stats.NotIPv4},
		{"one byte", whole[:1], stats.Malformed},
		{"19 bytes", whole[:19], stats.Malformed},
	}
	e := newEncapsulator(t, encap.Outer{})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { checkNotEncapsulated(t, e, tt.inner, tt.want) })
	}
	t.Run("empty", func(t *testing.T) {
		// Either reason is right.
		if v := e.Encap(make([]byte, encap.IPIP.HdrLen), nil); v != stats.NotIPv4 && v != stats.Malformed {
			t.Errorf("Encap = %v, want %v or %v", v, stats.NotIPv4, stats.Malformed)
		}
	})
	t.Run("shortest", func(t *testing.T) {
		mustEncap(t, e, ipv4{payload: []byte{}}.bytes())
	})
}

func TestT5_OuterDF(t *testing.T) {
	for _, noPMTUDisc := range []bool{false, true} {
		for _, innerDF := range []bool{false, true} {
			t.Run(fmt.Sprintf("nopmtudisc=%v inner=%v", noPMTUDisc, innerDF), func(t *testing.T) {
				e := newEncapsulator(t, encap.Outer{NoPMTUDisc: noPMTUDisc})
				outer := mustEncap(t, e, ipv4{df: innerDF}.bytes())
				if want := !noPMTUDisc || innerDF; outer.DF() != want {
					t.Errorf("outer DF %v, want %v", outer.DF(), want)
				}
			})
		}
	}
}

// Linux, not RFC 6040: CE leaves as ECT(0).
func TestT9_OuterTOS(t *testing.T) {
	const notECT, ect1, ect0, ce = 0, 1, 2, 3 // RFC 3168 §5
	outerECN := map[uint8]uint8{notECT: notECT, ect1: ect1, ect0: ect0, ce: ect0}
	const innerDSCP = 0xb8 // EF
	tests := []struct {
		name string
		o    encap.Outer
		dscp uint8 // of the outer header
	}{
		{"default", encap.Outer{}, 0},
		{"fixed", encap.Outer{TOS: 0x28}, 0x28},
		{"fixed, its ECN bits are ignored", encap.Outer{TOS: 0xff}, 0xfc},
		{"fixed CE", encap.Outer{TOS: 0x03}, 0},
		{"inherit", encap.Outer{InheritTOS: true}, innerDSCP},
		{"inherit in place of TOS", encap.Outer{InheritTOS: true, TOS: 0x2b}, innerDSCP},
	}
	for _, tt := range tests {
		for inner, outer := range outerECN {
			t.Run(fmt.Sprintf("%s inner ECN %02b", tt.name, inner), func(t *testing.T) {
				hdr := mustEncap(t, newEncapsulator(t, tt.o), ipv4{tos: innerDSCP | inner}.bytes())
				if want := tt.dscp | outer; hdr.TOS() != want {
					t.Errorf("outer TOS %#02x, want %#02x", hdr.TOS(), want)
				}
				if headerSum(hdr) != 0xffff {
					t.Errorf("outer header sums to %#04x", headerSum(hdr))
				}
			})
		}
	}
}

func TestT9_EveryInnerTOS(t *testing.T) {
	inherit := newEncapsulator(t, encap.Outer{InheritTOS: true})
	for tos := range 0x100 {
		want := uint8(tos)
		if tos&3 == 3 {
			want = uint8(tos)&^3 | 2
		}
		if got := mustEncap(t, inherit, ipv4{tos: uint8(tos)}.bytes()).TOS(); got != want {
			t.Errorf("inner TOS %#02x: outer %#02x, want %#02x", tos, got, want)
		}
	}
}

func TestT10_OuterTTL(t *testing.T) {
	tests := []struct {
		configured uint8
		inner      int
		want       uint8
	}{
		{0, 1, 1}, {0, 64, 64}, {0, 255, 255}, // inherit
		{1, 64, 1}, {64, 1, 64}, {255, 3, 255},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("ttl %d, inner %d", tt.configured, tt.inner), func(t *testing.T) {
			inner := ipv4{ttl: tt.inner}.bytes()
			outer := mustEncap(t, newEncapsulator(t, encap.Outer{TTL: tt.configured}), inner)
			if outer.TTL() != tt.want {
				t.Errorf("outer TTL %d, want %d", outer.TTL(), tt.want)
			}
			if int(inner.TTL()) != tt.inner { // O9
				t.Errorf("inner TTL %d, was %d", inner.TTL(), tt.inner)
			}
		})
	}
}

func TestT11_OuterHeader(t *testing.T) {
	for name, inner := range map[string]packet.IPv4{
		"bare header": ipv4{payload: []byte{}}.bytes(),
		"ping":        ipv4{df: true}.bytes(),
		"options":     ipv4{options: []byte{0x94, 4, 0, 0}}.bytes(),
		"1480 bytes":  ipv4{payload: make([]byte, 1460)}.bytes(),
		"fragment":    ipv4{mf: true, offset: 1480, id: 7}.bytes(),
		"nested":      ipv4{proto: packet.ProtoIPIP, payload: ipv4{}.bytes()}.bytes(),
		"longest":     ipv4{payload: make([]byte, packet.IPv4MaxLen-2*packet.IPv4HdrLen)}.bytes(),
	} {
		t.Run(name, func(t *testing.T) {
			before := bytes.Clone(inner)
			// With old contents: every byte of the header is written, and none behind it.
			hdr := bytes.Repeat([]byte{0xee}, encap.IPIP.HdrLen+4)
			e := newEncapsulator(t, encap.Outer{})
			if v := e.Encap(hdr, inner); v != stats.Deliver {
				t.Fatalf("Encap = %v", v)
			}
			type header struct {
				Version, HdrLen, TotalLength, FragmentOffset int
				MF                                           bool
				Protocol                                     uint8
				Source, Destination                          [4]byte
				Sum                                          uint16
				Behind                                       []byte
			}
			p := packet.IPv4(hdr)
			got := header{
				p.Version(), p.HdrLen(), p.TotalLength(), p.FragmentOffset(),
				p.MF(), p.Protocol(), p.Source(), p.Destination(), headerSum(p), hdr[encap.IPIP.HdrLen:],
			}
			want := header{
				4, 20, 20 + len(inner), 0,
				false, packet.ProtoIPIP, local.As4(), remote.As4(), 0xffff, []byte{0xee, 0xee, 0xee, 0xee},
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("outer header (-want +got):\n%s", diff)
			}
			if !bytes.Equal(inner, before) {
				t.Error("the inner packet changed")
			}
		})
	}
}

// No total length is more than 65535.
func TestT11_TooLong(t *testing.T) {
	e := newEncapsulator(t, encap.Outer{})
	for n := packet.IPv4MaxLen - packet.IPv4HdrLen + 1; n <= packet.IPv4MaxLen; n += 19 {
		inner := ipv4{payload: make([]byte, n-packet.IPv4HdrLen)}.bytes()
		hdr := make([]byte, encap.IPIP.HdrLen)
		if v := e.Encap(hdr, inner); v == stats.Deliver {
			t.Errorf("inner packet of %d bytes: %v, outer total length %d", n, v, packet.IPv4(hdr).TotalLength())
		} else if !bytes.Equal(hdr, make([]byte, encap.IPIP.HdrLen)) {
			t.Errorf("inner packet of %d bytes: hdr was written with the verdict %v", n, v)
		}
	}
}

func TestG3_TTLZeroIsNotEncapsulated(t *testing.T) {
	for _, ttl := range []uint8{0, 64} {
		e := newEncapsulator(t, encap.Outer{TTL: ttl})
		checkNotEncapsulated(t, e, ipv4{ttl: -1}.bytes(), stats.TTLExpired)
	}
}

// A Linux host sends router solicitations on a new link: dropped under a reason of
// their own.
func TestG6_RouterSolicitation(t *testing.T) {
	solicitation := append([]byte{
		0x60, 0, 0, 0, 0, 8, 58, 255, // version 6, 8 bytes of ICMPv6, hop limit 255
		0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
		0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,
	}, 133, 0, 0x7b, 0xb8, 0, 0, 0, 0)
	checkNotEncapsulated(t, newEncapsulator(t, encap.Outer{}), solicitation, stats.NotIPv4)
}
