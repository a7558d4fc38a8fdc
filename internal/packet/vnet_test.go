package packet_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/internal/packet"
)

// nativeOrder turns the golden bytes below, which are little-endian, into the
// machine's order: the default of a TUN device (TUNSETVNETLE unset).
func nativeOrder(golden [packet.VNetHdrLen]byte) []byte {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		for i := 2; i < len(golden); i += 2 {
			golden[i], golden[i+1] = golden[i+1], golden[i]
		}
	}
	return golden[:]
}

func TestVNetHdr_Golden(t *testing.T) {
	tests := []struct {
		name   string
		hdr    packet.VNetHdr
		golden [packet.VNetHdrLen]byte
		needs  bool
	}{
		{"zero", packet.VNetHdr{}, [10]byte{}, false},
		{
			"partial UDP checksum",
			packet.VNetHdr{Flags: packet.VNetNeedsCsum, HdrLen: 28, CsumStart: 20, CsumOffset: packet.UDPCsumOffset},
			[10]byte{
				0x01,       // flags: NEEDS_CSUM
				0x00,       // gso_type: NONE
				0x1c, 0x00, // hdr_len 28
				0x00, 0x00, // gso_size
				0x14, 0x00, // csum_start 20
				0x06, 0x00, // csum_offset 6
			},
			true,
		},
		{
			"TCP superpacket",
			packet.VNetHdr{
				Flags: packet.VNetNeedsCsum, GSOType: packet.VNetGSOTCPv4,
				HdrLen: 52, GSOSize: 1428, CsumStart: 20, CsumOffset: packet.TCPCsumOffset,
			},
			[10]byte{
				0x01,       // flags: NEEDS_CSUM
				0x01,       // gso_type: TCPV4
				0x34, 0x00, // hdr_len 52
				0x94, 0x05, // gso_size 1428
				0x14, 0x00, // csum_start 20
				0x10, 0x00, // csum_offset 16
			},
			true,
		},
		{
			"DATA_VALID is not NEEDS_CSUM", // VIRTIO_NET_HDR_F_DATA_VALID
			packet.VNetHdr{Flags: 2},
			[10]byte{0x02},
			false,
		},
		{
			"every bit",
			packet.VNetHdr{Flags: 0xfd, GSOType: 0x81, HdrLen: 0x0123, GSOSize: 0x4567, CsumStart: 0x89ab, CsumOffset: 0xcdef},
			[10]byte{0xfd, 0x81, 0x23, 0x01, 0x67, 0x45, 0xab, 0x89, 0xef, 0xcd},
			true,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			golden := nativeOrder(tt.golden)
			// Old contents around and beneath: all ten bytes are written, and
			// the packet behind them is not.
			b := bytes.Repeat([]byte{0xee}, packet.VNetHdrLen+2)
			tt.hdr.Encode(b)
			if diff := cmp.Diff(append(bytes.Clone(golden), 0xee, 0xee), b); diff != "" {
				t.Errorf("Encode (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.hdr, packet.DecodeVNetHdr(b)); diff != "" {
				t.Errorf("Decode (-want +got):\n%s", diff)
			}
			if got := tt.hdr.NeedsCsum(); got != tt.needs {
				t.Errorf("NeedsCsum = %v, want %v", got, tt.needs)
			}
		})
	}
}

func FuzzVNetHdr(f *testing.F) {
	f.Add(make([]byte, packet.VNetHdrLen))
	f.Add([]byte{1, 1, 0x34, 0, 0x94, 5, 0x14, 0, 0x10, 0})
	f.Add(bytes.Repeat([]byte{0xff}, packet.VNetHdrLen+1))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < packet.VNetHdrLen {
			return // the caller's promise
		}
		got := bytes.Clone(b)
		h := packet.DecodeVNetHdr(b)
		h.Encode(got)
		if !bytes.Equal(got, b) {
			t.Errorf("decoded and encoded: % x, want % x", got, b)
		}
		if want := b[0]&packet.VNetNeedsCsum != 0; h.NeedsCsum() != want {
			t.Errorf("NeedsCsum = %v with flags %#02x", h.NeedsCsum(), b[0])
		}
	})
}
