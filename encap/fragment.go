package encap

import "goipip/internal/packet"

// MaxHdrLen is the length of the longest headers in front of a piece of payload,
// in bytes: those of any Format, and the inner IPv4 and TCP headers.
const MaxHdrLen = packet.IPv4HdrLen + packet.IPv4MaxHdrLen + packet.TCPMaxHdrLen

// Fragments cuts an IPv4 packet into fragments, as a router does (RFC 791 §3.2,
// ip_do_fragment in net/ipv4/ip_output.c). It leaves DF alone. The zero value has
// no fragments.
type Fragments struct {
	hdr     packet.IPv4 // of the packet, which may be a fragment itself
	payload []byte      // not yet returned
	offset  int         // of payload within the unfragmented packet, in bytes
	more    bool        // MF of the packet
	size    int         // payload of each fragment but the last, a multiple of 8 bytes
	later   bool        // the next fragment is not the first
}

// Fragment returns the fragments of the packet hdr + payload. None is longer than
// mtu bytes, which is at least len(hdr) + 8. hdr is a whole, valid header. The caller
// keeps hdr and payload unchanged until Next has returned nil.
func Fragment(hdr packet.IPv4, payload []byte, mtu int) Fragments {
	return Fragments{
		hdr:     hdr,
		payload: payload,
		offset:  hdr.FragmentOffset(),
		more:    hdr.MF(),
		size:    (mtu - len(hdr)) &^ 7,
	}
}

// Next writes the header of the next fragment to hdr, which is at least as long as
// the packet's, and returns it and the fragment's payload, a part of the packet's.
// After the last fragment it returns nil.
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
