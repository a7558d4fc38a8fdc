package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// PingOptions says how to ping. Its zero value sends one request of 56 bytes and waits a second for the reply.
type PingOptions struct {
	// Count is the number of requests, at most 65535; 0 is 1.
	Count int
	// Size is the length of the ICMP payload in bytes; 0 is 56, as that of ping(8).
	Size int
	// DF sets Don't Fragment. Otherwise it is clear, and the kernel fragments what exceeds the path's MTU.
	DF bool
	// Interval lies between two requests; 0 sends the next as soon as the last is answered or given up.
	Interval time.Duration
	// Timeout is how long to wait for a reply; 0 is one second.
	Timeout time.Duration
	// TTL of the requests; 0 is the kernel's default.
	TTL int
	// TOS of the requests, DSCP and ECN.
	TOS int
	// From is the source address; the zero value leaves it to the route.
	From netip.Addr
	// Reply, if set, is called for each reply as it arrives.
	Reply func(Reply)
}

// Reply is one echo reply.
type Reply struct {
	// Seq is the number of its request, from 1.
	Seq int
	// Bytes is the length of the ICMP message, header and payload.
	Bytes int
	// TTL and TOS are those of the reply's IP header.
	TTL, TOS int
	// RTT is the time between the system calls that sent the request and received the reply.
	RTT time.Duration
	// Duplicate says that the request had been answered before.
	Duplicate bool
}

// PingResult counts what a ping did.
type PingResult struct {
	// Sent counts requests, Received those of them that were answered, and Duplicates further replies.
	Sent, Received, Duplicates int
	// RTTs has the round-trip time of each received reply, in the order of arrival.
	RTTs []time.Duration
	// Duration is the time from the first request to the end.
	Duration time.Duration
}

// String returns the one or two lines of statistics that ping(8) ends with, without a line feed at the end.
func (r PingResult) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d packets transmitted, %d received", r.Sent, r.Received)
	if r.Duplicates > 0 {
		fmt.Fprintf(&b, ", +%d duplicates", r.Duplicates)
	}
	if r.Sent > 0 {
		fmt.Fprintf(&b, ", %.6g%% packet loss", 100*float64(r.Sent-r.Received)/float64(r.Sent))
	}
	fmt.Fprintf(&b, ", time %dms", r.Duration.Milliseconds())
	if len(r.RTTs) == 0 {
		return b.String()
	}

	var sum, squares float64
	lowest, highest := math.Inf(1), 0.0
	for _, rtt := range r.RTTs {
		ms := rtt.Seconds() * 1000
		sum, squares = sum+ms, squares+ms*ms
		lowest, highest = min(lowest, ms), max(highest, ms)
	}
	mean := sum / float64(len(r.RTTs))
	// Rounding can leave the variance a hair below zero.
	deviation := math.Sqrt(max(0, squares/float64(len(r.RTTs))-mean*mean))
	fmt.Fprintf(&b, "\nrtt min/avg/max/mdev = %.3f/%.3f/%.3f/%.3f ms", lowest, mean, highest, deviation)
	return b.String()
}

// Ping sends ICMP echo requests to an IPv4 address and returns when all are answered or given up. Lost packets are no
// error. A reply that is not, byte for byte, what its request asks for is one, and so is a request that cannot be sent:
// with DF and larger than the known path MTU the error is EMSGSIZE. When ctx ends early its error comes with the result so
// far.
//
// It needs no ping(8), which a fresh machine may lack.
func (h *Host) Ping(ctx context.Context, to netip.Addr, o PingOptions) (PingResult, error) {
	p, err := h.newPinger(to, o)
	if err != nil {
		return PingResult{}, fmt.Errorf("host %s: ping %v: %w", h.Name, to, err)
	}
	defer p.conn.Close()

	defer context.AfterFunc(ctx, func() { p.conn.SetReadDeadline(time.Now()) })()
	start := time.Now()
	err = p.run(ctx)
	p.result.Duration = time.Since(start)
	if err != nil {
		return p.result, fmt.Errorf("host %s: ping %v: %w", h.Name, to, err)
	}
	return p.result, nil
}

// pings makes the ids of this process's pings differ.
var pings atomic.Uint32

type pinger struct {
	o    PingOptions
	to   *net.IPAddr
	id   int
	conn *net.IPConn
	buf  []byte

	result   PingResult
	sent     []time.Time // by Seq-1
	answered []bool      // by Seq-1
}

func (h *Host) newPinger(to netip.Addr, o PingOptions) (*pinger, error) {
	if o.Count == 0 {
		o.Count = 1
	}
	if o.Size == 0 {
		o.Size = 56
	}
	if o.Timeout == 0 {
		o.Timeout = time.Second
	}
	if !to.Is4() {
		return nil, fmt.Errorf("not an IPv4 address: %w", unix.EINVAL)
	}
	if o.Count < 0 || o.Count > math.MaxUint16 || o.Size < 0 {
		return nil, fmt.Errorf("%d requests of %d bytes: %w", o.Count, o.Size, unix.EINVAL)
	}
	p := &pinger{
		o:   o,
		to:  &net.IPAddr{IP: to.AsSlice()},
		id:  int(uint16(uint32(os.Getpid()) + pings.Add(1))),
		buf: make([]byte, math.MaxUint16),
	}
	err := h.Do(func() (err error) {
		p.conn, err = net.ListenIP("ip4:icmp", &net.IPAddr{IP: o.From.AsSlice()})
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := p.setOptions(); err != nil {
		return nil, errors.Join(err, p.conn.Close())
	}
	return p, nil
}

func (p *pinger) setOptions() error {
	// The default, IP_PMTUDISC_WANT, sets DF on what fits the path, see ip(7).
	discover := unix.IP_PMTUDISC_DONT
	if p.o.DF {
		discover = unix.IP_PMTUDISC_DO
	}
	raw, err := p.conn.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, discover)
	}); err != nil {
		return err
	}
	if optErr != nil {
		return os.NewSyscallError("setsockopt IP_MTU_DISCOVER", optErr)
	}

	conn := ipv4.NewPacketConn(p.conn)
	if p.o.TTL != 0 {
		if err := conn.SetTTL(p.o.TTL); err != nil {
			return fmt.Errorf("set ttl %d: %w", p.o.TTL, err)
		}
	}
	if err := conn.SetTOS(p.o.TOS); err != nil {
		return fmt.Errorf("set tos %#x: %w", p.o.TOS, err)
	}
	var filter ipv4.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv4.ICMPTypeEchoReply)
	if err := conn.SetICMPFilter(&filter); err != nil {
		return fmt.Errorf("set icmp filter: %w", err)
	}
	return nil
}

// run sends and receives until the last request is answered or given up.
func (p *pinger) run(ctx context.Context) error {
	next := time.Now() // of sending, and after the last request of giving up
	for p.result.Received < p.o.Count {
		if !time.Now().Before(next) {
			if p.result.Sent == p.o.Count {
				return nil
			}
			if err := p.send(); err != nil {
				return err
			}
			next = time.Now().Add(p.o.Timeout)
			if p.o.Interval > 0 && p.result.Sent < p.o.Count {
				next = time.Now().Add(p.o.Interval)
			}
		}
		newest, err := p.receive(ctx, next)
		if err != nil {
			return err
		}
		if newest && p.o.Interval == 0 {
			next = time.Now()
		}
	}
	return nil
}

func (p *pinger) send() error {
	seq := p.result.Sent + 1
	request, err := p.message(ipv4.ICMPTypeEcho, seq)
	if err != nil {
		return err
	}
	p.sent, p.answered = append(p.sent, time.Now()), append(p.answered, false)
	if _, err := p.conn.WriteToIP(request, p.to); err != nil {
		return fmt.Errorf("request %d of %d bytes: %w", seq, p.o.Size, err)
	}
	p.result.Sent++
	return nil
}

// receive waits for a packet until then, and says whether it was the reply to the newest request.
func (p *pinger) receive(ctx context.Context, until time.Time) (newest bool, err error) {
	if err := p.conn.SetReadDeadline(until); err != nil {
		return false, err
	}
	// That may have overridden the deadline which the end of ctx set, so this comes after it.
	if err := ctx.Err(); err != nil {
		return false, err
	}
	// ReadMsgIP leaves the IP header in place, other than ReadFrom.
	n, _, _, _, err := p.conn.ReadMsgIP(p.buf, nil)
	now := time.Now()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	hdr, err := ipv4.ParseHeader(p.buf[:n])
	if err != nil {
		return false, fmt.Errorf("parse header of received packet: %w", err)
	}
	got := p.buf[hdr.Len:n]
	seq, ok := p.match(hdr, got)
	if !ok {
		return false, nil
	}
	if want, err := p.message(ipv4.ICMPTypeEchoReply, seq); err != nil {
		return false, err
	} else if !bytes.Equal(got, want) {
		return false, fmt.Errorf("reply %d is not what was sent: %w", seq, differ(got, want))
	}
	p.count(Reply{Seq: seq, Bytes: len(got), TTL: hdr.TTL, TOS: hdr.TOS, RTT: now.Sub(p.sent[seq-1])})
	return seq == p.result.Sent, nil
}

// match returns which of this pinger's requests a received ICMP message answers. A raw socket sees those of others too.
func (p *pinger) match(hdr *ipv4.Header, message []byte) (seq int, ok bool) {
	m, err := icmp.ParseMessage(unix.IPPROTO_ICMP, message)
	if err != nil {
		return 0, false
	}
	echo, ok := m.Body.(*icmp.Echo)
	if !ok || echo.ID != p.id || !hdr.Src.Equal(p.to.IP) {
		return 0, false
	}
	return echo.Seq, 1 <= echo.Seq && echo.Seq <= p.result.Sent
}

func (p *pinger) count(r Reply) {
	if r.Duplicate = p.answered[r.Seq-1]; r.Duplicate {
		p.result.Duplicates++
	} else {
		p.answered[r.Seq-1] = true
		p.result.Received++
		p.result.RTTs = append(p.result.RTTs, r.RTT)
	}
	if p.o.Reply != nil {
		p.o.Reply(r)
	}
}

// message builds request or reply seq, whose payload is different for every id and seq. With the checksum in it, a reply
// has one right value only.
func (p *pinger) message(typ ipv4.ICMPType, seq int) ([]byte, error) {
	payload := make([]byte, p.o.Size)
	content(uint64(p.id)<<16 | uint64(seq)).Read(payload)
	m := icmp.Message{Type: typ, Body: &icmp.Echo{ID: p.id, Seq: seq, Data: payload}}
	return m.Marshal(nil)
}
