package encap

import (
	"fmt"

	"goipip/internal/packet"
)

// Format describes the headers in front of the inner packet.
type Format struct {
	Protocol uint8 // of the outer IPv4 header
	HdrLen   int   // of all headers, in bytes
}

// IPIP is an IPv4 header without options (RFC 2003, T11).
var IPIP = Format{Protocol: packet.ProtoIPIP, HdrLen: packet.IPv4HdrLen}

// check returns an error unless f is a bare IPv4 header, the only header that
// this package writes and strips so far. The zero Format is an error too.
func (f Format) check() error {
	if f.Protocol == 0 || f.HdrLen != packet.IPv4HdrLen {
		return fmt.Errorf("format of protocol %d and %d bytes of headers: not supported", f.Protocol, f.HdrLen)
	}
	return nil
}
