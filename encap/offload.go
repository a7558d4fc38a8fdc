package encap

import "goipip/internal/packet"

// Unfinished looks at a decapsulated packet for work that a kernel left to the
// hardware behind it, and returns the virtio-net header that passes this on to
// the local kernel. mtu is the tunnel device's, in bytes. The zero header means
// that the packet is complete.
//
// A kernel that encapsulates on the same machine (veth, virtio), or that merges
// segments on receive, hands over TCP and UDP with only the pseudo-header sum in
// the checksum field, and TCP many segments long. Neither shows in what a raw
// socket returns, so it is told by the bytes: the field equals that sum. One
// whole packet in 65536 looks the same by chance; finishing its checksum gives
// the value that it had.
func Unfinished(inner packet.IPv4, mtu int) packet.VNetHdr {
	if inner.IsFragment() {
		return packet.VNetHdr{} // its checksum covers more than this
	}
	switch inner.Protocol() {
	case packet.ProtoTCP:
		return unfinishedTCP(inner, mtu)
	case packet.ProtoUDP:
		udp := packet.UDP(inner.Payload())
		if udp.Valid() && udp.Checksum() == packet.PseudoHeaderSum(inner) {
			return needsCsum(inner, packet.UDPHdrLen, packet.UDPCsumOffset)
		}
	}
	return packet.VNetHdr{}
}

func unfinishedTCP(inner packet.IPv4, mtu int) packet.VNetHdr {
	tcp := packet.TCP(inner.Payload())
	if !tcp.Valid() || tcp.Checksum() != packet.PseudoHeaderSum(inner) {
		return packet.VNetHdr{}
	}
	h := needsCsum(inner, tcp.HdrLen(), packet.TCPCsumOffset)
	// The segment size is lost. The largest that fits the device is what the
	// sender uses, or a bit more. TCP does not mind, unless this host forwards the
	// packet to a link whose MTU lies between the two.
	if size := mtu - int(h.HdrLen); len(inner) > mtu && size > 0 {
		h.GSOType = packet.VNetGSOTCPv4
		h.GSOSize = uint16(size)
	}
	return h
}

func needsCsum(inner packet.IPv4, transportHdrLen, csumOffset int) packet.VNetHdr {
	return packet.VNetHdr{
		Flags:      packet.VNetNeedsCsum,
		HdrLen:     uint16(inner.HdrLen() + transportHdrLen),
		CsumStart:  uint16(inner.HdrLen()),
		CsumOffset: uint16(csumOffset),
	}
}
