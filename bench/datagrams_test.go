package bench

import (
	"errors"
	"net"
	"testing"
)

// receiveBuffer is what the receiving socket of datagrams asks for, in bytes, so
// that it does not lose what the peer has carried.
const receiveBuffer = 4 << 20

// openDatagrams opens a UDP socket on to, and one on from that is connected to it.
func openDatagrams(tb testing.TB, from, to *site) (out, in *net.UDPConn) {
	tb.Helper()
	if err := to.host.Do(func() (err error) {
		in, err = net.ListenUDP("udp4", &net.UDPAddr{IP: to.inner.AsSlice()})
		return err
	}); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { in.Close() })
	if err := from.host.Do(func() (err error) {
		out, err = net.DialUDP("udp4", nil, in.LocalAddr().(*net.UDPAddr))
		return err
	}); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { out.Close() })
	if err := errors.Join(in.SetReadBuffer(receiveBuffer), out.SetReadBuffer(receiveBuffer)); err != nil {
		tb.Fatal(err)
	}
	return out, in
}
