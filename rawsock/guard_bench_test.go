package rawsock_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"goipip/internal/packet"
	"goipip/rawsock"
)

// BenchmarkGuard measures what a guard costs the packets of its tunnel: each is copied
// for it before its filter runs (raw_v4_input in net/ipv4/raw.c). Three tunnels are
// measured in alternation, of which one has a guard; what is reported are medians of batches, from the sender's
// call to the receiver's, all on this host.
func BenchmarkGuard(b *testing.B) {
	for _, size := range []int{64, 1500} {
		b.Run(fmt.Sprint(size), func(b *testing.B) { benchmarkGuard(b, size) })
	}
}

func benchmarkGuard(b *testing.B, size int) {
	left, right := newPair(b)
	must(b, right.AddAddr("eth0", secondAddr.String()+"/24"))
	thirdAddr := secondAddr.Next()
	must(b, right.AddAddr("eth0", thirdAddr.String()+"/24"))
	bare := newBatchPath(b, leftEnd, size)
	guarded := newBatchPath(b, config{Local: leftAddr, Remote: secondAddr}, size)
	credited := newBatchPath(b, config{Local: leftAddr, Remote: thirdAddr}, size)
	open := func(p *batchPath) {
		p.sender = newSender(b, left, p.cfg)
		must(b, left.Do(p.sender.EnableHops))
		p.sender.setHop(hopTo(b, left, right, "eth0"))
		p.receiver = newConnected(b, right, reverse(p.cfg))
	}
	restore := rawsock.WithoutCredit()
	open(bare)
	open(guarded)
	restore()
	open(credited)
	newConnectedGuard(b, right, reverse(guarded.cfg))
	for b.Loop() {
		bare.transfer(b)
		guarded.transfer(b)
		credited.transfer(b)
	}
	b.ReportMetric(bare.median(), "bare-ns/packet")
	b.ReportMetric(credited.median(), "credit-ns/packet")
	b.ReportMetric(guarded.median(), "guarded-ns/packet")
	b.ReportMetric(0, "ns/op") // of both together
}

// batchPath is a tunnel's way from one host to the other.
type batchPath struct {
	cfg      config
	header   packet.IPv4
	payload  []byte
	sender   *sender
	receiver *receiver
	took     []time.Duration // each batch
}

func newBatchPath(b *testing.B, cfg config, size int) *batchPath {
	b.Helper()
	n := size - packet.IPv4HdrLen
	return &batchPath{cfg: cfg, header: outer(cfg, n), payload: make([]byte, n)}
}

// transfer sends a batch and receives it.
func (p *batchPath) transfer(b *testing.B) {
	for range rawsock.BatchSize {
		p.sender.Add(p.header, p.payload)
	}
	start := time.Now()
	must(b, p.sender.Flush())
	for n := 0; n < rawsock.BatchSize; {
		packets, err := p.receiver.Receive()
		must(b, err)
		n += len(packets)
	}
	p.took = append(p.took, time.Since(start))
}

// median returns that of the batches, in nanoseconds a packet.
func (p *batchPath) median() float64 {
	slices.Sort(p.took)
	return float64(p.took[len(p.took)/2].Nanoseconds()) / rawsock.BatchSize
}
