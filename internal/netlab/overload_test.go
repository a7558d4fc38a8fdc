package netlab_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// answersAll has a host send each ICMP error that is due, without a limit.
func answersAll(t *testing.T, host *netlab.Host) {
	t.Helper()
	if err := host.Sysctl("net.ipv4.icmp_ratemask", "0"); err != nil {
		t.Fatal(err)
	}
}

// icmpSent is how many ICMP messages a host has sent, as its kernel counts.
type icmpSent struct{ snmp *os.File } // proc(5), /proc/net/snmp

func countICMP(t *testing.T, host *netlab.Host) (c icmpSent) {
	t.Helper()
	if err := host.Do(func() (err error) {
		c.snmp, err = os.Open("/proc/thread-self/net/snmp")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.snmp.Close() })
	return c
}

func (c icmpSent) now() uint64 {
	buf := make([]byte, 8<<10)
	size, err := c.snmp.ReadAt(buf, 0)
	if err != nil && err != io.EOF {
		panic(err)
	}
	var names, numbers []string
	for line := range strings.Lines(string(buf[:size])) {
		if words := strings.Fields(line); words[0] == "Icmp:" {
			names, numbers = numbers, words
		}
	}
	n, err := strconv.ParseUint(numbers[slices.Index(names, "OutMsgs")], 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

// whenUp returns the number of messages at the moment when a link is first seen to be up.
func (c icmpSent) whenUp(t *testing.T, e end) <-chan uint64 {
	sent := make(chan uint64, 1)
	go func() {
		// Without a pause between two looks, because all that is between is a few system calls of goipip.
		for t.Context().Err() == nil {
			if isUp(e.host, e.dev) {
				sent <- c.now()
				return
			}
		}
	}()
	return sent
}

// icmpListener hears the ICMP messages that come to a host.
type icmpListener struct{ net.PacketConn }

func listenICMP(t *testing.T, host *netlab.Host) icmpListener {
	t.Helper()
	var conn net.PacketConn
	if err := host.Do(func() (err error) {
		conn, err = net.ListenPacket("ip4:icmp", "0.0.0.0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return icmpListener{conn}
}

// heard returns what has come so far, but for pings.
func (l icmpListener) heard(t *testing.T) (messages []string) {
	t.Helper()
	const echoReply, echo = 0, 8
	buf := make([]byte, 2000)
	for {
		l.SetReadDeadline(time.Now().Add(10 * time.Millisecond)) // one that is over would forbid to read
		n, from, err := l.ReadFrom(buf)
		if err != nil {
			return messages
		}
		if n > 1 && buf[0] != echo && buf[0] != echoReply {
			messages = append(messages, fmt.Sprintf("%d/%d from %v", buf[0], buf[1], from))
		}
	}
}

var counterPattern = regexp.MustCompile(`\b((?:tx|rx)\.\w+)=(\d+)`)

// counters asks goipip for its counters, by the names that they have in its log.
func (b *background) counters(t *testing.T) map[string]uint64 {
	t.Helper()
	const line = "msg=counters "
	before := strings.Count(b.out.String(), line)
	if err := b.Signal(unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	labtest.WaitFor(t, "the counters", func() bool {
		log := b.out.String()
		return strings.Count(log, line) > before && strings.HasSuffix(log, "\n")
	})
	log := b.out.String()
	found := map[string]uint64{}
	for _, m := range counterPattern.FindAllStringSubmatch(log[strings.LastIndex(log, line):], -1) {
		found[m[1]], _ = strconv.ParseUint(m[2], 10, 64)
	}
	return found
}

// total adds up a direction, tx or rx: packets, and those that were dropped, for any reason.
func total(counters map[string]uint64, direction string) (n uint64) {
	for name, value := range counters {
		if name == direction+".packets" || strings.HasPrefix(name, direction+".dropped_") {
			n += value
		}
	}
	return n
}

// settledCounters returns the counters when a direction has counted all that came, and fails the test unless it is so many.
func (b *background) settledCounters(t *testing.T, direction string, came uint64) map[string]uint64 {
	t.Helper()
	var books map[string]uint64
	defer func() {
		if t.Failed() {
			t.Logf("%d packets came, the last counters are %v", came, books)
		}
	}()
	labtest.WaitFor(t, "all packets to be counted", func() bool {
		books = b.counters(t)
		return total(books, direction) >= came
	})
	books = b.counters(t)
	if got := total(books, direction); got != came {
		t.Errorf("%d packets came, %d are counted: %v", came, got, books)
	}
	return books
}

// counted is a chain of netfilter that counts packets.
type counted struct {
	host *netlab.Host
	hook string
}

// count counts what a rule of nft(8) matches at a hook.
func count(t *testing.T, host *netlab.Host, hook, rule string) counted {
	t.Helper()
	labtest.Need(t, "nft")
	run(t, host, "nft add table ip count")
	run(t, host, "nft add chain ip count "+hook+" { type filter hook "+hook+" priority 0 ; }")
	run(t, host, "nft add rule ip count "+hook+" "+rule+" counter")
	return counted{host, hook}
}

func (c counted) packets(t *testing.T) uint64 {
	t.Helper()
	out := run(t, c.host, "nft list chain ip count "+c.hook)
	_, rest, _ := strings.Cut(out, " counter packets ")
	number, _, _ := strings.Cut(rest, " ")
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		t.Fatalf("no count in %s", out)
	}
	return n
}

// noBPF is how a host without CAP_BPF answers: a guard then takes what receivers have no room for.
var noBPF = netlab.RefusedCall{Number: unix.SYS_BPF, Unless: bpf.JumpLessThan, Value: 0, Errno: unix.EPERM}

// withoutBPF, among options, has startOverloaded start goipip so.
const withoutBPF = "without BPF"

func (e end) startOverloaded(t *testing.T, options string) *background {
	t.Helper()
	if rest, ok := strings.CutSuffix(options, withoutBPF); ok {
		return e.startRefusing(t, noBPF, strings.Fields(rest)...)
	}
	return e.start(t, strings.Fields(options)...)
}

// Nothing answers the packets that an overloaded tunnel has no room for, as nothing does with the kernel's own.
func TestHazard11_OverloadIsSilent(t *testing.T) {
	t.Parallel()
	for _, options := range []string{"", "--queues 4", "--offload off --tx raw", withoutBPF, "--queues 4 " + withoutBPF} {
		t.Run("options "+options, func(t *testing.T) {
			t.Parallel()
			l := newTunnelLab(t)
			tun01, tun02 := l.end01.start(t), l.end02.startOverloaded(t, options)
			l.pingBothWays(t)
			answersAll(t, l.ns02)
			discards(t, l.ns02, l.end02.inner)
			icmp := listenICMP(t, l.ns01)
			packets := generator{Packets: l.end01.outerDatagrams(16, 10), Count: 200_000}

			sent := countICMP(t, l.ns02)
			before := sent.now()
			tun02.pause(t)
			packets.start(t, l.ns01).finishes(t)
			if n := sent.now() - before; n > 0 {
				t.Errorf("ns02 has sent %d ICMP messages while goipip stood still", n)
			}
			tun02.resume(t)
			l.revives(t)
			l.pingBothWays(t)
			if heard := icmp.heard(t); len(heard) > 0 {
				t.Errorf("ns01 hears %v", heard[:min(len(heard), 5)])
			}
			if c := tun02.counters(t); c["rx.dropped_rcvbuf_full"] == 0 {
				t.Errorf("no overload: %v", c)
			}
			tun01.hasNoComplaint(t)
			tun02.hasNoComplaint(t)

			// A host without a tunnel does answer, so that the test would notice.
			tun02.exits(t, l.end02, func() error { return tun02.Signal(unix.SIGTERM) })
			before = sent.now()
			generator{Packets: packets.Packets, Count: 10}.start(t, l.ns01).finishes(t)
			labtest.WaitFor(t, "ICMP 3/2", func() bool { return sent.now() >= before+10 })
			labtest.WaitFor(t, "ICMP 3/2 at ns01", func() bool { return len(icmp.heard(t)) > 0 })
		})
	}
}

// From the moment that the link is up, nothing answers packets that were already coming before.
func TestHazard11_StartIsSilent(t *testing.T) {
	labtest.Long(t)
	for _, options := range []string{"", "--queues 4", withoutBPF} {
		t.Run("options "+options, func(t *testing.T) {
			l := newTunnelLab(t)
			answersAll(t, l.ns02)
			if err := l.ns02.AddAddr("lo", l.end02.inner+"/32"); err != nil {
				t.Fatal(err)
			}
			discards(t, l.ns02, l.end02.inner)
			silent := l.end02
			silent.inner = ""
			generator{Packets: l.end01.outerDatagrams(16, 10)}.start(t, l.ns01)
			sent := countICMP(t, l.ns02)
			passes := func(n uint64) {
				until := received(t, l.ns02, "veth02") + n
				labtest.WaitFor(t, "packets", func() bool { return received(t, l.ns02, "veth02") > until })
			}
			for range 5 {
				before := sent.now()
				labtest.WaitFor(t, "ICMP 3/2", func() bool { return sent.now() > before+100 })
				whenUp := sent.whenUp(t, silent)
				tun02 := silent.startOverloaded(t, options)
				before = labtest.Within(t, "the link to be seen up", whenUp)
				passes(20_000)
				tun02.pause(t)
				passes(50_000)
				if n := sent.now() - before; n > 0 {
					t.Errorf("ns02 has sent %d ICMP messages since the link was up", n)
				}
				tun02.resume(t)
				if c := tun02.counters(t); c["rx.packets"] == 0 {
					t.Errorf("the tunnel has received nothing: %v", c)
				}
				tun02.exits(t, silent, func() error { return tun02.Signal(unix.SIGTERM) })
			}
		})
	}
}

// Each packet that comes to the host for the tunnel is counted once, whether it passed or the buffer had no room.
func TestHazard12_ReceiveBooks(t *testing.T) {
	t.Parallel()
	for _, options := range []string{"--queues 1", "--queues 1 --offload off", "--queues 4", "--queues 1 " + withoutBPF} {
		t.Run("options "+options, func(t *testing.T) {
			t.Parallel()
			l := newTunnelLab(t)
			arrived := count(t, l.ns02, "input", "ip saddr 192.168.6.101 ip daddr 192.168.8.101 ip protocol 4")
			discards(t, l.ns02, "0.0.0.0")
			delivered := count(t, l.ns02, "prerouting", "iifname \"tun02\" udp dport 9")
			tun02 := l.end02.startOverloaded(t, options)
			const n = 400_000
			for range 2 {
				g := generator{Packets: l.end01.outerDatagrams(16, 10), Number: outerNumber, Count: n}.start(t, l.ns01)
				for range 3 { // overload while packets are read, and while none is
					tun02.pause(t)
					more := received(t, l.ns02, "veth02") + n/4
					labtest.WaitFor(t, "packets", func() bool { return received(t, l.ns02, "veth02") > more || ended(g) })
					tun02.resume(t)
					tun02.counters(t)
				}
				g.finishes(t)
			}
			books := tun02.settledCounters(t, "rx", arrived.packets(t))
			t.Logf("of %d sent: %v", 2*n, books)
			for name := range books {
				if strings.HasPrefix(name, "rx.dropped_") && name != "rx.dropped_rcvbuf_full" {
					t.Errorf("packets were dropped for a reason that they did not have: %v", books)
				}
			}
			if books["rx.dropped_rcvbuf_full"] == 0 || books["rx.packets"] == 0 {
				t.Errorf("no overload, or nothing passed: %v", books)
			}
			if strings.Contains(options, "--offload off") && delivered.packets(t) != books["rx.packets"] {
				t.Errorf("the kernel got %d packets by the link, %d are counted", delivered.packets(t), books["rx.packets"])
			}
		})
	}
}

func ended(b *background) bool {
	select {
	case <-b.ended:
		return true
	default:
		return false
	}
}

// Each packet that the link is given is counted once, whether it was sent or the link's queue had no room.
func TestHazard12_TransmitBooks(t *testing.T) {
	t.Parallel()
	for _, options := range []string{"--queues 1", "--queues 4", "--queues 1 --tx raw", "--queues 1 --offload off"} {
		t.Run("options "+options, func(t *testing.T) {
			t.Parallel()
			l := newTunnelLab(t)
			tun01 := l.end01.start(t, strings.Fields(options)...)
			left := count(t, l.router, "forward", "ip saddr 192.168.6.101 ip daddr 192.168.8.101 ip protocol 4")
			const n = 50_000
			var given uint64
			tun01.pause(t)
			generator{Packets: l.end01.innerDatagrams(16, 10), Number: innerNumber, Count: n}.start(t, l.ns01).finishes(t)
			given += n
			if got := left.packets(t); got > 0 {
				t.Fatalf("%d packets have left a tunnel that stands still", got)
			}
			tun01.resume(t)
			for range 2 { // and for real, if the machine has it
				generator{Packets: l.end01.innerDatagrams(16, 10), Number: innerNumber, Count: n}.start(t, l.ns01).finishes(t)
				given += n
			}
			books := tun01.settledCounters(t, "tx", given)
			t.Logf("%v", books)
			if books["tx.dropped_queue_full"] == 0 || books["tx.packets"] == 0 {
				t.Errorf("no overload, or nothing passed: %v", books)
			}
			labtest.WaitFor(t, fmt.Sprintf("%d packets at the router", books["tx.packets"]), func() bool {
				return left.packets(t) == books["tx.packets"]
			})
		})
	}
}

// Each packet that is on its way when a tunnel with several queues starts is delivered once at most.
func TestHazard13_NoDuplicatesAtStart(t *testing.T) {
	const starts, flows, many = 20, 16, 500
	l := newTunnelLab(t)
	if err := l.ns02.AddAddr("lo", l.end02.inner+"/32"); err != nil {
		t.Fatal(err)
	}
	conn := numbered(t, l.ns02, l.end02.inner)
	generator{Packets: l.end01.outerDatagrams(flows, 10), Number: outerNumber, Rate: 20_000}.start(t, l.ns01)
	e := l.end02
	e.inner = ""
	times := map[uint64]int{}
	buf := make([]byte, 100)
	for i := range starts {
		g := e.start(t, "--queues", "4")
		from := map[int]bool{}
		for n := 0; n < many || len(from) < flows; n++ {
			conn.SetReadDeadline(time.Now().Add(answerTime))
			size, addr, err := conn.ReadFromUDP(buf)
			if err != nil || size != 10 {
				t.Fatalf("start %d: after %d packets of %d flows: %d bytes, %v", i, n, len(from), size, err)
			}
			from[addr.Port] = true
			number := binary.BigEndian.Uint64(buf)
			if times[number]++; times[number] > 1 {
				t.Errorf("start %d: packet %d arrives for the %d. time", i, number, times[number])
			}
		}
		g.exits(t, e, func() error { return g.Signal(unix.SIGTERM) })
	}
}
