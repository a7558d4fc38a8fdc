package rawsock

import (
	"net/netip"
	"os"
	"unsafe"

	"goipip/internal/packet"

	"golang.org/x/sys/unix"
)

// ICMPError is an ICMP error about a packet that the tunnel sent.
type ICMPError struct {
	Type, Code uint8      // RFC 792
	MTU        int        // of the next hop, in bytes, for a packet that was too big
	Offender   netip.Addr // who reports it
	// Inner is how much of the inner packet the message quotes, from its IP header
	// on: 8 bytes at least from most routers, perhaps nothing.
	Inner packet.IPv4
}

// maxQuote is the most of an inner packet that an ICMP error is of use with, in
// bytes.
const maxQuote = 576

// errorQueue reads what IP_RECVERR leaves on a socket (ip(7)).
type errorQueue struct {
	quote [maxQuote]byte
	oob   [128]byte
}

// enable asks for the error queue.
func (q *errorQueue) enable(fd int) error {
	return os.NewSyscallError("setsockopt IP_RECVERR",
		unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1))
}

// drain calls handle for each ICMP error that waits. Its Inner is valid during the
// call.
func (q *errorQueue) drain(fd int, handle func(ICMPError)) {
	for {
		n, oobn, _, _, err := unix.Recvmsg(fd, q.quote[:], q.oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return // EAGAIN: there is no more
		}
		if e, ok := parseError(q.oob[:oobn]); ok {
			e.Inner = q.quote[:n:n]
			handle(e)
		}
	}
}

// parseError finds the ICMP error among the control messages.
func parseError(oob []byte) (e ICMPError, ok bool) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return e, false
	}
	for _, m := range messages {
		const size = unsafe.Sizeof(unix.SockExtendedErr{}) + unix.SizeofSockaddrInet4
		if m.Header.Level != unix.SOL_IP || m.Header.Type != unix.IP_RECVERR || len(m.Data) < int(size) {
			continue
		}
		ee := (*unix.SockExtendedErr)(unsafe.Pointer(unsafe.SliceData(m.Data)))
		if ee.Origin != unix.SO_EE_ORIGIN_ICMP {
			continue // about this host, not the path
		}
		offender := (*unix.RawSockaddrInet4)(unsafe.Add(unsafe.Pointer(ee), unsafe.Sizeof(*ee)))
		return ICMPError{
			Type:     ee.Type,
			Code:     ee.Code,
			MTU:      int(ee.Info),
			Offender: netip.AddrFrom4(offender.Addr),
		}, true
	}
	return e, false
}
