package packet

import "encoding/binary"

// VNetHdrLen is the size of the virtio-net header before each packet of a TUN
// queue with IFF_VNET_HDR, in bytes.
const VNetHdrLen = 10

// Values of VNetHdr (linux/virtio_net.h).
const (
	VNetNeedsCsum = 1 // Flags: the checksum at CsumStart+CsumOffset is partial

	VNetGSONone  = 0
	VNetGSOTCPv4 = 1    // GSOType: TCP over IPv4
	VNetGSOUDPL4 = 5    // GSOType: UDP datagrams, over either IP
	VNetGSOECN   = 0x80 // GSOType, beside TCP: the first segment has CWR
)

// VNetHdr is the virtio-net header (struct virtio_net_hdr): what sender and
// receiver of a packet leave to each other. The zero value asks for nothing.
type VNetHdr struct {
	Flags      uint8
	GSOType    uint8
	HdrLen     uint16 // of all headers, in bytes; a hint, not to be trusted on read
	GSOSize    uint16 // payload of each segment but the last, in bytes
	CsumStart  uint16 // where the checksum begins to cover the packet, in bytes
	CsumOffset uint16 // where it is stored, in bytes from CsumStart
}

// NeedsCsum reports whether the packet's transport checksum is only partial: the
// checksum field holds the folded sum of the pseudo-header.
func (h VNetHdr) NeedsCsum() bool { return h.Flags&VNetNeedsCsum != 0 }

// DecodeVNetHdr reads the header in b, which has at least VNetHdrLen bytes. Its
// fields are in the machine's byte order, the default of a TUN device.
func DecodeVNetHdr(b []byte) VNetHdr {
	ne := binary.NativeEndian
	_ = b[VNetHdrLen-1]
	return VNetHdr{
		Flags:      b[0],
		GSOType:    b[1],
		HdrLen:     ne.Uint16(b[2:]),
		GSOSize:    ne.Uint16(b[4:]),
		CsumStart:  ne.Uint16(b[6:]),
		CsumOffset: ne.Uint16(b[8:]),
	}
}

// Encode writes the header to b, which has at least VNetHdrLen bytes.
func (h VNetHdr) Encode(b []byte) {
	ne := binary.NativeEndian
	_ = b[VNetHdrLen-1]
	b[0] = h.Flags
	b[1] = h.GSOType
	ne.PutUint16(b[2:], h.HdrLen)
	ne.PutUint16(b[4:], h.GSOSize)
	ne.PutUint16(b[6:], h.CsumStart)
	ne.PutUint16(b[8:], h.CsumOffset)
}
