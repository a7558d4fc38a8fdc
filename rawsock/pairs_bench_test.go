package rawsock_test

import (
	"net/netip"
	"testing"

	"goipip/rawsock"
)

// BenchmarkPairs measures what it costs the packets of one pair, of 1500 bytes and by a raw
// socket, that there are others: its source is a control message then, and the filter looks
// the pair up in a map. Reported are medians of batches, from the sender's call to the
// receiver's, all on this host.
func BenchmarkPairs(b *testing.B) {
	left, right := newPair(b)
	alone := newBatchPath(b, leftEnd, 1500)
	alone.sender = newSender(b, left, alone.cfg)
	alone.receiver = newConnected(b, right, reverse(alone.cfg))

	left, right = newPair(b) // in another network: each packet would be copied to both receivers
	among := newBatchPath(b, leftEnd, 1500)
	among.sender = newSender(b, left, config{Remote: rightAddr})
	among.sender.to.Set(rawsock.Route{Local: leftAddr, Remote: rightAddr})
	among.receiver = newReceiver(b, right, reverse(among.cfg))
	for i := range 1000 {
		remote := netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})
		must(b, among.receiver.Add(rawsock.Pair{Local: rightAddr, Remote: remote}))
	}
	for b.Loop() {
		alone.transfer(b)
		among.transfer(b)
	}
	b.ReportMetric(alone.median(), "alone-ns/packet")
	b.ReportMetric(among.median(), "among-1000-ns/packet")
	b.ReportMetric(0, "ns/op") // of both together
}
