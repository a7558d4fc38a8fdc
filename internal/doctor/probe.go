package doctor

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"goipip/internal/packet"

	"github.com/google/nftables/binaryutil"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// How long a probe takes: rounds of packets until something comes back, a while for what comes
// beside that, and the search for the path MTU.
const (
	probeRounds   = 3
	probeInterval = 600 * time.Millisecond
	probeGrace    = 200 * time.Millisecond
	probeMTUWait  = 800 * time.Millisecond
)

// Sequence numbers of echo requests; those of requests of a size have it as their number.
const (
	seqInner = 1 // between the inner addresses
	seqOuter = 2 // within the tunnel, between the outer addresses
	seqPlain = 3 // without a tunnel
)

// probe is the packets to a remote end, and what came of them.
type probe struct {
	subject *subject
	local   netip.Addr // of outer packets
	remote  netip.Addr
	inner   [2]netip.Addr // source and destination within the tunnel; not valid if not known
	id      int           // of echo requests

	tunnel, plain net.PacketConn // protocol 4, and ICMP
	link          net.PacketConn // ICMP to the inner address; nil if that is not here

	mu      sync.Mutex
	answers map[int]answerKind // by sequence number
	errors  []icmpError
	changed chan struct{} // has room for one
}

// answerKind is how an echo reply came.
type answerKind uint8

const (
	byTunnel answerKind = iota + 1
	byItself            // without a tunnel
)

// icmpError is an ICMP error about a packet of a probe.
type icmpError struct {
	from       netip.Addr
	kind, code uint8
	mtu        int // in bytes, of a 3/4
}

// probe sends packets of protocol 4 to a remote end, and says what comes back.
func (e *exam) probe(ctx context.Context, s *subject) []Result {
	fail := func(err error) []Result {
		return []Result{{
			Check: checkProbe, Tunnel: s.label, Status: Failure, Saw: "the probe fails: " + err.Error(),
			Why: "packets of the tunnel would fare no better", Cure: "look at the other checks: route, local, filter-output, net-raw",
		}}
	}
	p, err := e.openProbe(ctx, s)
	if err != nil {
		return fail(err)
	}
	defer p.close()
	if err := p.rounds(ctx); err != nil {
		return fail(err)
	}
	r := p.result()
	list := []Result{r}
	if r.Status != Failure && p.answered(p.best()) == byTunnel {
		list = append(list, p.searchMTU(ctx))
	}
	for i := range list {
		list[i].Check, list[i].Tunnel = cmp.Or(list[i].Check, checkProbe), s.label
	}
	return list
}

// openProbe opens the sockets, and begins to receive.
func (e *exam) openProbe(ctx context.Context, s *subject) (*probe, error) {
	p := &probe{
		subject: s, local: s.source(), remote: s.Config.Remote, id: 1 + rand.IntN(0xffff),
		answers: map[int]answerKind{}, changed: make(chan struct{}, 1),
	}
	p.inner = e.innerAddresses(s)
	if !p.local.IsValid() {
		return nil, errors.New("no address to send from: " + s.path.Reason)
	}
	config := net.ListenConfig{Control: s.setLookup}
	var err error
	if p.tunnel, err = config.ListenPacket(ctx, "ip4:"+strconv.Itoa(packet.ProtoIPIP), p.local.String()); err != nil {
		return nil, err
	}
	if p.plain, err = config.ListenPacket(ctx, "ip4:icmp", p.local.String()); err != nil {
		p.tunnel.Close()
		return nil, err
	}
	// What the fast path carries does not come by the socket of protocol 4.
	if p.knowsInner() {
		if p.link, err = config.ListenPacket(ctx, "ip4:icmp", p.inner[0].String()); err != nil {
			p.link = nil
		} else {
			go p.receive(p.link, p.takeLink)
		}
	}
	go p.receive(p.tunnel, p.takeTunnel)
	go p.receive(p.plain, p.takeICMP)
	return p, nil
}

func (p *probe) close() {
	p.tunnel.Close()
	p.plain.Close()
	if p.link != nil {
		p.link.Close()
	}
}

// setLookup has a socket's packets take the tunnel's way, and be as long as the device permits.
func (s *subject) setLookup(_, _ string, c syscall.RawConn) (err error) {
	ctlErr := c.Control(func(fd uintptr) {
		set := func(level, name, value int) {
			if err == nil {
				err = unix.SetsockoptInt(int(fd), level, name, value)
			}
		}
		set(unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		if s.Config.Mark != 0 {
			set(unix.SOL_SOCKET, unix.SO_MARK, int(int32(s.Config.Mark)))
		}
		if t := s.Config.RouteTOS(); t != 0 {
			set(unix.SOL_IP, unix.IP_TOS, int(t))
		}
		if s.path.Bound != 0 {
			// In network byte order (ip(7)). It does not limit by which device answers may come.
			set(unix.SOL_IP, unix.IP_UNICAST_IF, int(binaryutil.NativeEndian.Uint32(binaryutil.BigEndian.PutUint32(uint32(s.path.Bound)))))
		}
	})
	return errors.Join(ctlErr, err)
}

// innerAddresses returns those of the tunnel: as configured, or as its link has them.
func (e *exam) innerAddresses(s *subject) (a [2]netip.Addr) {
	a[0], a[1] = s.Config.Address.Addr(), s.Config.Peer
	if a[1].IsValid() || !s.here() {
		return a
	}
	for _, l := range e.addresses()[s.Index] {
		own, _ := netip.AddrFromSlice(l.IP.To4())
		if l.Peer != nil && !l.Peer.IP.Equal(l.IP) {
			peer, _ := netip.AddrFromSlice(l.Peer.IP.To4())
			return [2]netip.Addr{own, peer}
		}
	}
	return a
}

// knowsInner reports whether both inner addresses are known.
func (p *probe) knowsInner() bool { return p.inner[0].IsValid() && p.inner[1].IsValid() }

// best is the request whose answer tells most.
func (p *probe) best() int {
	if p.knowsInner() {
		return seqInner
	}
	return seqOuter
}

// rounds sends requests until one is answered, or an ICMP error and what comes soon after it.
func (p *probe) rounds(ctx context.Context) error {
	for range probeRounds {
		requests := [][2]netip.Addr{{p.local, p.remote}}
		if p.knowsInner() {
			requests = append(requests, p.inner)
		}
		for i, addresses := range requests {
			if err := p.request([]int{seqOuter, seqInner}[i], addresses, 0); err != nil {
				return err
			}
		}
		if err := p.ping(); err != nil {
			return err
		}
		answered := func() bool { return p.answers[p.best()] != 0 }
		if p.wait(ctx, probeInterval, func() bool { return answered() || len(p.errors) > 0 }) {
			p.wait(ctx, probeGrace, func() bool { return answered() && len(p.errors) > 0 })
			return nil
		}
	}
	return nil
}

func (p *probe) answered(seq int) answerKind {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answers[seq]
}

// wait waits until cond holds, which is called with mu held, and reports whether it does.
func (p *probe) wait(ctx context.Context, timeout time.Duration, cond func() bool) bool {
	end := time.NewTimer(timeout)
	defer end.Stop()
	for {
		p.mu.Lock()
		holds := cond()
		p.mu.Unlock()
		if holds {
			return true
		}
		select {
		case <-p.changed:
		case <-end.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// echo returns an echo request with a payload of n bytes.
func (p *probe) echo(seq, n int) ([]byte, error) {
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: p.id, Seq: seq, Data: make([]byte, n)}}
	return m.Marshal(nil)
}

// request sends an echo request within the tunnel, in an inner packet of size bytes, or as short as
// it can be.
func (p *probe) request(seq int, inner [2]netip.Addr, size int) error {
	echo, err := p.echo(seq, max(0, size-packet.IPv4HdrLen-packet.ICMPHdrLen))
	if err != nil {
		return err
	}
	b := make(packet.IPv4, packet.IPv4HdrLen+len(echo))
	copy(b[packet.IPv4HdrLen:], echo)
	b.InitHeader()
	b.SetTotalLength(len(b))
	b.SetTTL(64)
	b.SetProtocol(packet.ProtoICMP)
	b.SetSource(inner[0].As4())
	b.SetDestination(inner[1].As4())
	b.UpdateChecksum()
	_, err = p.tunnel.WriteTo(b, &net.IPAddr{IP: p.remote.AsSlice()})
	return withoutReport(err)
}

// ping sends an echo request without a tunnel.
func (p *probe) ping() error {
	echo, err := p.echo(seqPlain, 0)
	if err != nil {
		return err
	}
	_, err = p.plain.WriteTo(echo, &net.IPAddr{IP: p.remote.AsSlice()})
	if errors.Is(err, syscall.EPERM) {
		return nil // a firewall here that minds pings only
	}
	return withoutReport(err)
}

// withoutReport removes errors that are ICMP errors about an earlier packet, which takeICMP gets too.
func withoutReport(err error) error {
	for _, reported := range []syscall.Errno{syscall.EHOSTUNREACH, syscall.ENOPROTOOPT, syscall.ECONNREFUSED} {
		if errors.Is(err, reported) {
			return nil
		}
	}
	return err
}

// receive hands what comes to take, until the socket is closed.
func (p *probe) receive(conn net.PacketConn, take func(from netip.Addr, b []byte)) {
	b := make([]byte, packet.IPv4MaxLen)
	for {
		n, from, err := conn.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		a, isIP := from.(*net.IPAddr)
		if err != nil || !isIP {
			continue // an ICMP error about an earlier packet
		}
		addr, _ := netip.AddrFromSlice(a.IP.To4())
		take(addr, b[:n])
	}
}

// takeTunnel takes an inner packet.
func (p *probe) takeTunnel(from netip.Addr, b []byte) {
	inner := packet.IPv4(b)
	if from == p.remote && inner.Valid() && inner.Protocol() == packet.ProtoICMP && inner.FragmentOffset() == 0 {
		p.takeReply(inner.Payload(), byTunnel)
	}
}

// takeLink takes an ICMP message that came out of the tunnel.
func (p *probe) takeLink(from netip.Addr, b []byte) {
	if from == p.inner[1] {
		p.takeReply(b, byTunnel)
	}
}

// takeICMP takes an ICMP message.
func (p *probe) takeICMP(from netip.Addr, b []byte) {
	m := packet.ICMP(b)
	if len(m) < packet.ICMPHdrLen {
		return
	}
	if !packet.IsICMPError(m.Type()) {
		if from == p.remote {
			p.takeReply(b, byItself)
		}
		return
	}
	quote := m.Quote()
	if m.Type() == packet.ICMPRedirect || !m.Valid() || !quote.HasHeader() || quote.Protocol() != packet.ProtoIPIP || quote.Destination() != p.remote.As4() {
		return
	}
	e := icmpError{from: from, kind: m.Type(), code: m.Code()}
	if e.kind == packet.ICMPUnreachable && e.code == packet.ICMPCodeFragNeeded {
		e.mtu = m.MTU()
	}
	p.mu.Lock()
	p.errors = append(p.errors, e)
	p.mu.Unlock()
	p.wake()
}

// takeReply takes what may be an echo reply.
func (p *probe) takeReply(b []byte, how answerKind) {
	m, err := icmp.ParseMessage(packet.ProtoICMP, b)
	if err != nil || m.Type != ipv4.ICMPTypeEchoReply {
		return
	}
	reply, isEcho := m.Body.(*icmp.Echo)
	if !isEcho || reply.ID != p.id {
		return
	}
	p.mu.Lock()
	p.answers[reply.Seq] = how
	p.mu.Unlock()
	p.wake()
}

func (p *probe) wake() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// Codes of ICMPUnreachable that name a filter (RFC 1812 §5.2.7.1, RFC 1122 §3.2.2.1).
var prohibited = []uint8{9, 10, 13}

// codeProtocol is the code of a host that does not speak a protocol (RFC 792).
const codeProtocol = 2
