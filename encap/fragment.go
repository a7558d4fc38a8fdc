package encap

import "goipip/internal/packet"

// MaxHdrLen is the most room that the headers before a piece of payload need, in
// bytes: an outer header, an inner one, and TCP's.
const MaxHdrLen = maxOuterLen + packet.IPv4MaxHdrLen + packet.TCPMaxHdrLen

// Fragments cuts an IPv4 packet without DF into fragments, as a router does (RFC
// 791 §3.2, ip_do_fragment in net/ipv4/ip_output.c). The zero value has none.
type Fragments struct {
	hdr     packet.IPv4 // of the packet, also a fragment perhaps
	payload []byte
	offset  int // of payload within the unfragmented packet, in bytes
	more    bool
	size    int  // of each fragment's payload but the last, a multiple of 8
	later   bool // the first one is done
}

// Fragment returns the fragments of the packet hdr + payload, none longer than
// mtu bytes, which has room for hdr and 8 bytes more. hdr is valid and 20 to 60
// bytes long; both are read until the last call of Next.
func Fragment(hdr packet.IPv4, payload []byte, mtu int) Fragments {
	return Fragments{
		hdr:     hdr,
		payload: payload,
		offset:  hdr.FragmentOffset(),
		more:    hdr.MF(),
		size:    (mtu - len(hdr)) &^ 7,
	}
}

// Next writes the header of the next fragment to hdr, which has room for that of
// the packet, and returns it with the fragment's payload, a part of the packet's.
// It returns a nil header when there are no more.
func (f *Fragments) Next(hdr packet.IPv4) (packet.IPv4, []byte) {
	if len(f.payload) == 0 {
		return nil, nil
	}
	n := min(f.size, len(f.payload))
	piece := f.payload[:n:n]
	f.payload = f.payload[n:]

	hdr = hdr[:copy(hdr, f.hdr)]
	if f.later {
		hdr.DropUncopiedOptions()
	}
	hdr.SetTotalLength(len(hdr) + n)
	hdr.SetFragment(f.offset, f.more || len(f.payload) > 0)
	hdr.UpdateChecksum()
	f.offset += n
	f.later = true
	return hdr, piece
}
