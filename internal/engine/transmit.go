package engine

import (
	"goipip/encap"
	"goipip/internal/packet"
	"goipip/rawsock"
	"goipip/tun"
)

// transmit moves the packets of one TUN queue to the remote end.
type transmit struct {
	queue  *tun.Queue
	encap  *encap.Encapsulator
	sender *rawsock.Sender
	count  transmitted

	headers [rawsock.BatchSize][encap.HdrLen]byte
	lengths [rawsock.BatchSize]int // of the inner packets in the batch, in bytes
	lost    struct{ packets, bytes int }
}

// A batch of reads fits a batch of sends.
var _ [rawsock.BatchSize - tun.BatchSize]struct{}

func newTransmit(queue *tun.Queue, e *encap.Encapsulator, sock rawsock.Config) (_ *transmit, err error) {
	t := &transmit{queue: queue, encap: e}
	t.sender, err = rawsock.NewSender(sock, t.refused)
	return t, err
}

// run works until the queue or the sender is closed, or the link is gone.
func (t *transmit) run() error {
	for {
		packets, err := t.queue.Read()
		if err != nil {
			return err
		}
		if err := t.sendAll(packets); err != nil {
			return err
		}
	}
}

// sendAll passes one batch on.
func (t *transmit) sendAll(packets []tun.Packet) error {
	bytes := 0
	for i := range packets {
		if v := t.add(&packets[i]); v != encap.Deliver {
			t.count.verdicts[v].Add(1)
			continue
		}
		bytes += len(packets[i].Bytes)
	}
	n := t.sender.Len()
	t.lost.packets, t.lost.bytes = 0, 0
	err := t.sender.Flush()
	t.count.packets.Add(uint64(n - t.lost.packets))
	t.count.bytes.Add(uint64(bytes - t.lost.bytes))
	return err
}

// add puts one packet into the sender's batch, with its header and its checksum
// finished.
func (t *transmit) add(p *tun.Packet) encap.Verdict {
	i := t.sender.Len()
	header := t.headers[i][:]
	if v := t.encap.Encap(header, p.Bytes); v != encap.Deliver {
		return v
	}
	if p.VNet.NeedsCsum() && !packet.FinishChecksum(p.Bytes, p.VNet) {
		return encap.Malformed
	}
	t.lengths[i] = len(p.Bytes)
	t.sender.Add(header, p.Bytes)
	return encap.Deliver
}

// refused counts message i of the batch as dropped.
func (t *transmit) refused(i int, why rawsock.Refusal) {
	t.count.refusals[why].Add(1)
	t.lost.packets++
	t.lost.bytes += t.lengths[i]
}
