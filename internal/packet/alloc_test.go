package packet_test

import (
	"testing"

	"goipip/internal/packet"
)

// No function that runs for each packet allocates. Each case says whether it
// did its work, too: a function that does nothing allocates nothing either.
func TestAllocs(t *testing.T) {
	p := header(20, 1480, 1480)
	p.SetProtocol(packet.ProtoUDP)
	p.SetSource([4]byte{192, 0, 2, 1})
	p.SetDestination([4]byte{198, 51, 100, 2})
	p.UpdateChecksum()
	vnet := packet.VNetHdr{Flags: packet.VNetNeedsCsum, CsumStart: 20, CsumOffset: packet.UDPCsumOffset}
	buf := make([]byte, packet.VNetHdrLen)

	optional := header(28, 28, 28)
	options := optional[packet.IPv4HdrLen:]
	message := packet.ICMP(make([]byte, packet.ICMPHdrLen+100))

	syn := packet.TCP{12: 6 << 4, 13: packet.TCPSyn, 20: 2, 4, 0x05, 0xb4}
	syn.SetChecksum(^slowSum(syn, 0))

	wantSum := slowSum(p, 0)
	wantPseudo := slowPseudoHeaderSum(p)
	field := p[packet.IPv4HdrLen+packet.UDPCsumOffset:][:2]

	tests := []struct {
		name string
		work func() bool
	}{
		{"Sum", func() bool { return packet.Sum(p, 0) == wantSum }},
		{"PseudoHeaderSum", func() bool { return packet.PseudoHeaderSum(p) == wantPseudo }},
		{"FinishChecksum", func() bool {
			field[0], field[1] = byte(wantPseudo>>8), byte(wantPseudo)
			return packet.FinishChecksum(p, partialAt(packet.IPv4HdrLen, packet.UDPCsumOffset)) &&
				packet.Sum(p.Payload(), wantPseudo) == 0xffff
		}},
		{"PatchChecksum", func() bool { return packet.PatchChecksum(0xdd2f, 0x5555, 0x3285) == 0 }},
		{"RewriteTOS", func() bool {
			p.RewriteTOS(p.TOS() ^ 3)
			return packet.Sum(p[:packet.IPv4HdrLen], 0) == 0xffff
		}},
		{"SetFragment", func() bool {
			p.SetFragment(1480, true)
			ok := p.FragmentOffset() == 1480 && p.MF()
			p.SetFragment(0, false)
			return ok
		}},
		{"DropUncopiedOptions", func() bool {
			copy(options, []byte{0x44, 4, 5, 0, 0x94, 4, 0, 0})
			optional.DropUncopiedOptions()
			return options[0] == 1 && options[4] == 0x94
		}},
		{"InitError", func() bool {
			message.InitError(packet.ICMPUnreachable, packet.ICMPCodeHost, 0)
			return packet.Sum(message, 0) == 0xffff && packet.IsICMPError(message.Type())
		}},
		{"Valid", func() bool { return p.Valid() && packet.UDP(p.Payload()).Valid() }},
		{"MSS", func() bool {
			before, at := syn.MSS()
			syn.SetMSS(at, before-1)
			syn.PatchChecksum(at, before, before-1)
			after, _ := syn.MSS()
			return at == 22 && after == before-1 && slowSum(syn, 0) == 0xffff
		}},
		{"VNetHdr", func() bool {
			vnet.Encode(buf)
			return packet.DecodeVNetHdr(buf) == vnet
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			failed := 0
			allocs := testing.AllocsPerRun(100, func() {
				if !tt.work() {
					failed++
				}
			})
			if failed > 0 {
				t.Errorf("%d runs of 101 did not do the work", failed)
			}
			if allocs != 0 {
				t.Errorf("%v allocations a run, want 0", allocs)
			}
		})
	}
}
