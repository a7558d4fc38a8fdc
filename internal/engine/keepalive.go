package engine

import (
	"crypto/rand"
	"net/netip"
	"sync"
	"sync/atomic"

	"goipip/internal/packet"
	"goipip/internal/stats"
	"goipip/rawsock"
)

// Keepalive is how the in loops tell whether a tunnel's remote end is alive, and know the
// replies to the tunnel's own echo requests, which are for no one else.
type Keepalive struct {
	token [tokenLen]byte // the data of the echo requests
	heard atomic.Bool    // a packet has come since the last call of Heard
	first chan struct{}
}

// tokenLen is the length of a token, in bytes. Nobody guesses it.
const tokenLen = 16

// EchoLen is the length of an echo request, in bytes.
const EchoLen = packet.IPv4HdrLen + packet.ICMPHdrLen + tokenLen

// NewKeepalive returns a Keepalive with a token of its own, for a Plan.
func NewKeepalive() *Keepalive {
	k := &Keepalive{first: make(chan struct{}, 1)}
	_, _ = rand.Read(k.token[:]) // which never fails
	return k
}

// Heard reports whether a packet has come from the remote end since the last call.
func (k *Keepalive) Heard() bool { return k.heard.Swap(false) }

// First receives when the first packet comes after a call of Heard.
func (k *Keepalive) First() <-chan struct{} { return k.first }

// Echo writes an echo request to b, which has EchoLen bytes, and returns it.
func (k *Keepalive) Echo(b []byte, from, to netip.Addr, sequence uint16) packet.IPv4 {
	ip := packet.IPv4(b[:EchoLen])
	ip.InitHeader()
	ip.SetTotalLength(EchoLen)
	ip.SetDF(true)
	ip.SetTTL(64)
	ip.SetProtocol(packet.ProtoICMP)
	ip.SetSource(from.As4())
	ip.SetDestination(to.As4())
	ip.UpdateChecksum()
	message := packet.ICMP(ip[packet.IPv4HdrLen:])
	copy(message[packet.ICMPHdrLen:], k.token[:])
	message.InitEcho(packet.ICMPEcho, k.id(), sequence)
	return ip
}

// id is the identifier of the echo requests.
func (k *Keepalive) id() uint16 { return uint16(k.token[0])<<8 | uint16(k.token[1]) }

// took takes note of a packet from the remote end, and reports whether it is a reply to an
// echo request, and so goes no further.
func (k *Keepalive) took(inner packet.IPv4) bool {
	if !k.heard.Load() && !k.heard.Swap(true) {
		select {
		case k.first <- struct{}{}:
		default:
		}
	}
	return k.isReply(inner)
}

func (k *Keepalive) isReply(inner packet.IPv4) bool {
	if inner.Protocol() != packet.ProtoICMP || inner.IsFragment() {
		return false
	}
	m := packet.ICMP(inner.Payload())
	return len(m) == packet.ICMPHdrLen+tokenLen && m.Type() == packet.ICMPEchoReply && m.ID() == k.id() && [tokenLen]byte(m.Data()) == k.token
}

// side sends packets that come from no link.
type side struct {
	mu     sync.Mutex
	sender *rawsock.Sender // nil until EnableSend
	header [packet.IPv4HdrLen]byte
	why    stats.Reason // of the packet that is being sent
}

// EnableSend lets Tunnel.Send work. It must be called in the Engine's network namespace.
func (e *Engine) EnableSend() (err error) {
	s := &e.side
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sender == nil {
		s.sender, err = rawsock.NewSender(e.local, func(_ int, why stats.Reason) { s.why = why })
	}
	return err
}

func (s *side) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sender != nil {
		s.sender.Close()
	}
}

// Send encapsulates a packet of at most 576 bytes that did not come from the link, and sends
// it. It is counted nowhere. Send returns stats.Deliver, or why it was not sent. Any goroutine
// may call it, after EnableSend; it may wait for 10 ms.
func (t *Tunnel) Send(inner packet.IPv4) stats.Reason {
	s, plan := &t.engine.side, t.plan.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	why := plan.encap.Encap(s.header[:], inner)
	switch {
	case why != stats.Deliver:
		return why
	case plan.Path.Loop: // T4
		return stats.Loop
	case plan.Path.LocalMissing: // T3
		return stats.NoRoute
	}
	s.why = stats.Deliver
	s.sender.Add(&t.peer, s.header[:], inner)
	if s.sender.Flush() != nil {
		return stats.NoRoute // it is closed
	}
	return s.why
}
