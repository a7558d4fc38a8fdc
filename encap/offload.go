package encap

import "goipip/internal/packet"

// Unfinished returns the virtio-net header of a decapsulated packet whose checksum
// or segmentation a kernel left to hardware, so that the local kernel completes it.
// mtu is that of the link, in bytes. The zero header means that the packet is
// complete.
//
// A peer on the same machine (veth, virtio), and GRO on receive, deliver TCP and
// UDP with only the pseudo-header sum in the checksum field, and TCP in
// superpackets. A raw socket does not report either, so the bytes decide: the field
// equals that sum. One complete packet in 65536 looks the same by chance; finishing
// its checksum gives the same value again.
func Unfinished(inner packet.IPv4, mtu int) packet.VNetHdr {
	if inner.IsFragment() {
		return packet.VNetHdr{} // its checksum covers the other fragments too
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
	// The segment size is not known. The largest that fits the link is the
	// sender's, or slightly more. That matters only if this host forwards the packet
	// to a link whose MTU lies between the two.
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
