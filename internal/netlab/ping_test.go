package netlab_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

var (
	ns01Addr = netip.MustParseAddr("192.168.6.101")
	ns02Addr = netip.MustParseAddr("192.168.8.101")
)

func newLab2(t *testing.T) (ns01, ns02, router *netlab.Host) {
	t.Helper()
	ns01, ns02, router, err := labtest.New(t).Lab2()
	if err != nil {
		t.Fatal(err)
	}
	return ns01, ns02, router
}

func TestPing(t *testing.T) {
	ns01, ns02, _ := newLab2(t)
	tests := map[string]struct {
		from *netlab.Host
		to   netip.Addr
		o    netlab.PingOptions
		ttl  int
	}{
		"defaults":            {ns01, ns02Addr, netlab.PingOptions{}, 63},
		"the other way":       {ns02, ns01Addr, netlab.PingOptions{Count: 3}, 63},
		"next door":           {ns01, netip.MustParseAddr("192.168.6.1"), netlab.PingOptions{Count: 3}, 64},
		"itself":              {ns01, ns01Addr, netlab.PingOptions{Count: 3}, 64},
		"one byte":            {ns01, ns02Addr, netlab.PingOptions{Count: 3, Size: 1}, 63},
		"exactly the mtu, DF": {ns01, ns02Addr, netlab.PingOptions{Count: 3, Size: 1472, DF: true}, 63},
		"fragments":           {ns01, ns02Addr, netlab.PingOptions{Count: 3, Size: 20000}, 63},
		"the largest":         {ns01, ns02Addr, netlab.PingOptions{Count: 3, Size: 65507}, 63},
		"interval":            {ns01, ns02Addr, netlab.PingOptions{Count: 20, Interval: time.Millisecond}, 63},
		"from, tos":           {ns01, ns02Addr, netlab.PingOptions{Count: 3, From: ns01Addr, TOS: 0x28}, 63},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			o := test.o
			replies := 0
			o.Reply = func(r netlab.Reply) {
				replies++
				size := cmp.Or(o.Size, 56)
				want := netlab.Reply{Seq: replies, Bytes: 8 + size, TTL: test.ttl, TOS: o.TOS, RTT: r.RTT}
				if r != want || r.RTT <= 0 {
					t.Errorf("reply %+v, want %+v with an RTT", r, want)
				}
			}
			r, err := test.from.Ping(labtest.Context(t), test.to, o)
			if err != nil {
				t.Fatal(err)
			}
			if n := cmp.Or(o.Count, 1); r.Sent != n || r.Received != n || len(r.RTTs) != n || replies != n || r.Duplicates != 0 {
				t.Errorf("%+v after %d replies, want %d", r, replies, n)
			}
			if least := time.Duration(r.Sent-1) * o.Interval; r.Duration < least {
				t.Errorf("took %v, want %v at least", r.Duration, least)
			}
		})
	}
}

func TestPingRequest(t *testing.T) {
	ns01, ns02, _ := newLab2(t)
	capture, err := ns02.Capture("veth02")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []netlab.PingOptions{{DF: true, TTL: 9, TOS: 0xb9}, {TTL: 200}} {
		if _, err := ns01.Ping(labtest.Context(t), ns02Addr, o); err != nil {
			t.Fatal(err)
		}
		_, err := capture.Wait(labtest.Context(t), func(p netlab.Captured) bool {
			h, err := ipv4.ParseHeader(p.Data)
			return err == nil && !p.Outgoing && h.TTL == o.TTL-1 && h.TOS == o.TOS && (h.Flags&ipv4.DontFragment != 0) == o.DF
		})
		if err != nil {
			t.Errorf("request with %+v: %v", o, err)
		}
	}
}

func TestPingTooBig(t *testing.T) {
	ns01, ns02, router := newLab2(t)
	r, err := ns01.Ping(labtest.Context(t), ns02Addr, netlab.PingOptions{Size: 1473, DF: true})
	if !errors.Is(err, unix.EMSGSIZE) || r.Sent != 0 {
		t.Errorf("1501 bytes with DF: %+v, %v, want EMSGSIZE", r, err)
	}

	// Both ends, because a veth also drops what comes in and is larger.
	if err := errors.Join(router.SetMTU("veth02_p", 1400), ns02.SetMTU("veth02", 1400)); err != nil {
		t.Fatal(err)
	}
	capture, err := ns01.Capture("veth01")
	if err != nil {
		t.Fatal(err)
	}
	// The first is lost, and the router's answer teaches the kernel the path's MTU.
	r, err = ns01.Ping(labtest.Context(t), ns02Addr, netlab.PingOptions{Size: 1472, DF: true, Timeout: 100 * time.Millisecond})
	if err != nil || r.Sent != 1 || r.Received != 0 {
		t.Errorf("first: %+v, %v, want it lost", r, err)
	}
	if _, err := capture.Wait(labtest.Context(t), func(p netlab.Captured) bool {
		return p.String() == "IP 192.168.6.1 > 192.168.6.101: ICMP fragmentation needed, mtu 1400, length 556"
	}); err != nil {
		t.Error(err)
	}
	r, err = ns01.Ping(labtest.Context(t), ns02Addr, netlab.PingOptions{Size: 1472, DF: true})
	if !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("second: %+v, %v, want EMSGSIZE", r, err)
	}
	r, err = ns01.Ping(labtest.Context(t), ns02Addr, netlab.PingOptions{Size: 1472})
	if err != nil || r.Received != 1 {
		t.Errorf("without DF: %+v, %v, want it answered", r, err)
	}
}

func TestPingUnanswered(t *testing.T) {
	ns01, ns02, _ := newLab2(t)
	if err := ns02.Sysctl("net.ipv4.icmp_echo_ignore_all", "1"); err != nil {
		t.Fatal(err)
	}
	for _, interval := range []time.Duration{0, time.Millisecond} {
		o := netlab.PingOptions{Count: 3, Interval: interval, Timeout: 10 * time.Millisecond}
		if r, err := ns01.Ping(labtest.Context(t), ns02Addr, o); err != nil || r.Sent != 3 || r.Received != 0 {
			t.Errorf("%+v, %v, want 3 lost", r, err)
		}
	}

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	r, err := ns01.Ping(ctx, ns02Addr, netlab.PingOptions{Count: 3, Timeout: time.Hour})
	if !errors.Is(err, context.DeadlineExceeded) || r.Sent != 1 {
		t.Errorf("%+v, %v, want one sent and %v", r, err, context.DeadlineExceeded)
	}
}

func TestPingErrors(t *testing.T) {
	ns01, _, _ := newLab2(t)
	if _, err := ns01.Ping(t.Context(), netip.MustParseAddr("10.1.2.3"), netlab.PingOptions{}); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("error %v, want %v", err, unix.ENETUNREACH)
	}
	if _, err := ns01.Ping(t.Context(), ns02Addr, netlab.PingOptions{From: ns02Addr}); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("error %v, want %v", err, unix.EADDRNOTAVAIL)
	}
	for _, o := range []netlab.PingOptions{{Count: -1}, {Count: 65536}, {Size: -1}} {
		if _, err := ns01.Ping(t.Context(), ns02Addr, o); !errors.Is(err, unix.EINVAL) {
			t.Errorf("error %v, want %v", err, unix.EINVAL)
		}
	}
	if _, err := ns01.Ping(t.Context(), netip.IPv6Loopback(), netlab.PingOptions{}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("error %v, want %v", err, unix.EINVAL)
	}
}

// respond answers echo requests at host in place of the kernel, with what answers makes of the right reply.
func respond(t *testing.T, host *netlab.Host, answers func(reply []byte) [][]byte) {
	t.Helper()
	if err := host.Sysctl("net.ipv4.icmp_echo_ignore_all", "1"); err != nil {
		t.Fatal(err)
	}
	var conn net.PacketConn
	if err := host.Do(func() (err error) { conn, err = net.ListenPacket("ip4:icmp", "0.0.0.0"); return err }); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-ended })
	go func() {
		defer close(ended)
		buf := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			m, err := icmp.ParseMessage(unix.IPPROTO_ICMP, buf[:n])
			if err != nil || m.Type != ipv4.ICMPTypeEcho {
				continue
			}
			m.Type = ipv4.ICMPTypeEchoReply
			reply, err := m.Marshal(nil)
			if err != nil {
				t.Error(err)
			}
			for _, answer := range answers(reply) {
				if _, err := conn.WriteTo(answer, from); err != nil {
					t.Error(err)
				}
			}
		}
	}()
}

func TestPingDuplicates(t *testing.T) {
	ns01, ns02, _ := newLab2(t)
	respond(t, ns02, func(reply []byte) [][]byte { return [][]byte{reply, reply} })
	r, err := ns01.Ping(labtest.Context(t), ns02Addr, netlab.PingOptions{Count: 3, Interval: 50 * time.Millisecond})
	if err != nil || r.Received != 3 || r.Duplicates < 2 {
		t.Errorf("%+v, %v, want 3 received and the duplicates of the first two", r, err)
	}
}

func TestPingChanged(t *testing.T) {
	ns01, ns02, _ := newLab2(t)
	mode := make(chan func([]byte) []byte, 1)
	respond(t, ns02, func(reply []byte) [][]byte { return [][]byte{(<-mode)(reply)} })
	for want, change := range map[string]func([]byte) []byte{
		"byte 63 is":              func(b []byte) []byte { b = bytes.Clone(b); b[63] ^= 1; return b },
		"byte 2 is":               func(b []byte) []byte { b = bytes.Clone(b); b[2] ^= 1; return b }, // the checksum
		"63 bytes in place of 64": func(b []byte) []byte { return b[:63] },
	} {
		mode <- change
		if _, err := ns01.Ping(labtest.Context(t), ns02Addr, netlab.PingOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}

func TestPingResultString(t *testing.T) {
	ms := time.Millisecond
	tests := map[string]netlab.PingResult{
		"0 packets transmitted, 0 received, time 0ms": {},
		"3 packets transmitted, 3 received, 0% packet loss, time 2003ms\nrtt min/avg/max/mdev = 1.000/2.000/3.000/0.816 ms": {
			Sent: 3, Received: 3, RTTs: []time.Duration{ms, 2 * ms, 3 * ms}, Duration: 2003 * ms},
		"3 packets transmitted, 1 received, +1 duplicates, 66.6667% packet loss, time 1ms\nrtt min/avg/max/mdev = 0.025/0.025/0.025/0.000 ms": {
			Sent: 3, Received: 1, Duplicates: 1, RTTs: []time.Duration{25 * time.Microsecond}, Duration: ms},
		"2 packets transmitted, 0 received, 100% packet loss, time 5ms": {Sent: 2, Duration: 5 * ms},
	}
	for want, r := range tests {
		if got := r.String(); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}
