package underlay_test

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/underlay"
)

// observing is a host whose Watcher is asked for what observes packets between the link t0
// and eth0.
type observing struct {
	*watched
	t *testing.T
	f counter
}

func observe(t *testing.T) *observing {
	t.Helper()
	labtest.Need(t, "root", "ip")
	o := &observing{watched: watch(t), t: t}
	ip(t, o.host, []string{"link add t0 type veth peer name t1", "link set t0 up", "link set t1 up"})
	o.w.Follow(underlay.Query{Local: local, Remote: remote, Link: o.link("t0").Attrs().Index, Observers: true}, &o.f)
	o.none()
	return o
}

func (o *observing) link(name string) netlink.Link {
	o.t.Helper()
	l, err := o.host.Netlink().LinkByName(name)
	if err != nil {
		o.t.Fatal(err)
	}
	return l
}

// wait waits until an observer is known whose text contains all of want.
func (o *observing) wait(want ...string) {
	o.t.Helper()
	labtest.WaitFor(o.t, fmt.Sprintf("%q to be observed", want), func() bool {
		p := o.f.path.Load()
		for _, part := range want {
			if p == nil || !strings.Contains(p.Observed, part) {
				return false
			}
		}
		return true
	})
}

func (o *observing) none() {
	o.t.Helper()
	labtest.WaitFor(o.t, "no observer", func() bool {
		p := o.f.path.Load()
		return p != nil && p.Observed == ""
	})
}

// packetSocket opens a packet socket on a link, or with 0 on all, that is closed by the test
// or after it.
func (o *observing) packetSocket(protocol uint16, link int) (closeSocket func()) {
	o.t.Helper()
	fd := -1
	if err := o.host.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		network := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, protocol))
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: network, Ifindex: link})
	}); err != nil {
		o.t.Fatal(err)
	}
	closeSocket = func() {
		if fd >= 0 {
			_ = unix.Close(fd)
			fd = -1
		}
	}
	o.t.Cleanup(closeSocket)
	return closeSocket
}

// A link that becomes promiscuous is published by the event alone.
func TestObserved_Promiscuous(t *testing.T) {
	o := observe(t)
	t0 := o.link("t0").Attrs().Index
	fd := -1
	if err := o.host.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	promiscuous := &unix.PacketMreq{Ifindex: int32(t0), Type: unix.PACKET_MR_PROMISC}
	resume := o.w.StopReading()
	defer resume()
	for range 2 {
		if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, promiscuous); err != nil {
			t.Fatal(err)
		}
		o.wait("promiscuous")
		if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_DROP_MEMBERSHIP, promiscuous); err != nil {
			t.Fatal(err)
		}
		o.none()
	}
}

// Of packet sockets, those matter that receive packets which the program would take.
func TestObserved_PacketSockets(t *testing.T) {
	t.Parallel()
	o := observe(t)
	t0, t1, eth0 := o.link("t0").Attrs().Index, o.link("t1").Attrs().Index, o.link("eth0").Attrs().Index
	var others []func()
	for _, s := range []struct {
		protocol uint16
		link     int
		want     string // empty if it does not matter
	}{
		{unix.ETH_P_ALL, t1, ""},
		{unix.ETH_P_IP, t1, ""},
		{unix.ETH_P_ALL, eth0, ""}, // sees packets earlier
		{unix.ETH_P_ARP, t0, ""},
		{unix.ETH_P_ARP, 0, ""},
		{0, t0, ""}, // receives nothing
		{0, 0, ""},
		{unix.ETH_P_ALL, t0, "on the link"},
		{unix.ETH_P_IP, t0, "on the link"},
		{unix.ETH_P_ALL, 0, "on all links"},
		{unix.ETH_P_IP, 0, "on all links"},
		{unix.ETH_P_IP, eth0, "for IPv4 listens on eth0"},
	} {
		closeSocket := o.packetSocket(s.protocol, s.link)
		if s.want == "" { // and stays, which the states below would show
			others = append(others, closeSocket)
			continue
		}
		o.wait("packet socket", s.want)
		closeSocket()
		o.none()
	}
	if len(others) != 7 {
		t.Errorf("%d sockets that do not matter", len(others))
	}
}

// A file of unknown shape counts as not readable.
func TestObserved_PacketSocketsFile(t *testing.T) {
	const heading = "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n"
	for file, want := range map[string]bool{
		"":      true,
		heading: true,
		heading + "0000000000000000 3      3    0003   0     1 0      0      4711  \n": true,
		heading + "0000000000000000 3      3    0003\n":                                false,
		heading + "0000000000000000 3      3    all    0     1 0      0      4711  \n": false,
		heading + "0000000000000000 3      3    0003   eth0  1 0      0      4711  \n": false,
	} {
		if got := underlay.IsPacketSocketsFile(file); got != want {
			t.Errorf("%q is readable: %v, want %v", file, got, want)
		}
	}
}

// clsact is the qdisc of tc's filters of a link.
func clsact(t *testing.T, host *netlab.Host, link string) netlink.Qdisc {
	t.Helper()
	l, err := host.Netlink().LinkByName(link)
	if err != nil {
		t.Fatal(err)
	}
	return &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
}

// Any qdisc of the link but noqueue is an observer, and of the device those for what comes.
func TestObserved_Qdiscs(t *testing.T) {
	t.Parallel()
	o := observe(t)
	nl := o.host.Netlink()
	add := func(q netlink.Qdisc) {
		t.Helper()
		if err := nl.QdiscAdd(q); err != nil {
			t.Fatal(err)
		}
	}
	del := func(q netlink.Qdisc) {
		t.Helper()
		if err := nl.QdiscDel(q); err != nil {
			t.Fatal(err)
		}
	}
	tbf := func(name string) netlink.Qdisc {
		return &netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: o.link(name).Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			Rate:       1 << 30, Limit: 1 << 20, Buffer: 1 << 20,
		}
	}
	clsact := func(name string) netlink.Qdisc { return clsact(t, o.host, name) }
	for _, name := range []string{"eth0", "t1"} { // do not matter
		add(tbf(name))
	}
	add(clsact("t1"))
	for range 2 {
		add(tbf("t0"))
		o.wait("the link has a qdisc", "tbf")
		del(tbf("t0"))
		o.none()
	}
	add(clsact("t0"))
	o.wait("the link has a qdisc", "clsact")
	add(clsact("eth0"))
	del(clsact("t0"))
	o.wait("eth0 has a qdisc for what comes", "clsact")
	del(clsact("eth0"))
	o.none()
}

// A tun gets the kernel's default qdisc without an event about qdiscs, when it comes up and
// when another one is deleted.
func TestObserved_DefaultQdisc(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "tun")
	o := observe(t)
	ip(t, o.host, []string{"tuntap add tun0 mode tun"})
	tun := &observing{watched: o.watched, t: t}
	o.w.Follow(underlay.Query{Local: local, Remote: remote, Link: o.link("tun0").Attrs().Index, Observers: true}, &tun.f)
	tun.none()
	ip(t, o.host, []string{"link set tun0 up"})
	kind := ""
	list, err := o.host.Netlink().QdiscList(o.link("tun0"))
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range list {
		kind = q.Type()
	}
	if kind == "" || kind == "noqueue" {
		t.Skipf("the default is %q", kind)
	}
	tun.wait("the link has a qdisc", kind)
	noqueue := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: o.link("tun0").Attrs().Index, Parent: netlink.HANDLE_ROOT},
		QdiscType:  "noqueue",
	}
	if err := o.host.Netlink().QdiscReplace(noqueue); err != nil {
		t.Fatal(err)
	}
	tun.none()
	if err := o.host.Netlink().QdiscDel(noqueue); err != nil {
		t.Fatal(err)
	}
	tun.wait("the link has a qdisc", kind)
	if p := o.f.path.Load(); p.Observed != "" {
		t.Errorf("the other link has %q", p.Observed)
	}
}

// xdp makes a program that passes all packets.
func xdp(t *testing.T) *ebpf.Program {
	t.Helper()
	labtest.Need(t, "bpf")
	const pass = 2 // XDP_PASS
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.XDP,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, pass), asm.Return()},
		License:      "GPL",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// An XDP program on the link is an observer, whether or not an event announces it.
func TestObserved_XDP(t *testing.T) {
	t.Parallel()
	o := observe(t)
	program := xdp(t)
	t0, eth0 := o.link("t0"), o.link("eth0").Attrs().Index
	attach := func(index int) link.Link {
		t.Helper()
		var l link.Link
		if err := o.host.Do(func() (err error) {
			l, err = link.AttachXDP(link.XDPOptions{Program: program, Interface: index, Flags: link.XDPGenericMode})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	attach(eth0) // sees packets earlier
	for range 2 {
		l := attach(t0.Attrs().Index)
		o.wait("XDP")
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		o.none()
	}
	resume := o.w.StopReading()
	defer resume()
	for _, fd := range []int{program.FD(), -1} {
		if err := o.host.Do(func() error { return netlink.LinkSetXdpFd(t0, fd) }); err != nil {
			t.Skip("netlink attaches no XDP program here: ", err)
		}
		if fd >= 0 {
			o.wait("XDP")
		} else {
			o.none()
		}
	}
}

// A chain of nftables at a device is an observer, at once, and not a filter.
func TestObserved_Netdev(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "nft")
	o := observe(t)
	nft := func(command string) {
		t.Helper()
		if out, err := o.host.Output("nft", command); err != nil {
			t.Fatalf("nft %s: %v\n%s", command, err, out)
		}
	}
	nft("add table netdev t")
	nft("add chain netdev t jumps")
	nft("add rule netdev t jumps counter")
	for range 2 {
		resume := o.w.StopReading()
		nft("add chain netdev t c { type filter hook ingress device eth0 priority 0; }")
		o.wait("nftables has a chain at a device")
		resume()
		nft("delete chain netdev t c")
		o.none()
	}
	if p := o.f.path.Load(); p.Filtered != "" {
		t.Error("filtered: ", p.Filtered)
	}
	nft("add chain netdev t c { type filter hook ingress device t1 priority 0; }")
	o.wait("nftables has a chain at a device")
	labtest.WaitFor(t, "what others are told", func() bool {
		p, _ := o.watched.f.knows()
		return p.MTU == 1500
	})
	if p, _ := o.watched.f.knows(); p.Observed != "" || p.Filtered != "" {
		t.Errorf("a Query without Observers gets %+v", p)
	}
	if p := o.f.path.Load(); p.Filtered != "" {
		t.Error("filtered: ", p.Filtered)
	}
}

// A Query without Observers gets none, and has nothing read for them.
func TestObserved_OnlyIfAsked(t *testing.T) {
	t.Parallel()
	o := observe(t)
	o.packetSocket(unix.ETH_P_ALL, 0)
	o.wait("all links")
	var f counter
	index := o.link("t0").Attrs().Index
	o.w.Follow(underlay.Query{Local: local, Remote: remote, Link: index}, &f)
	if p := f.path.Load(); p.Observed != "" || p.Reason != "" {
		t.Errorf("observed %+v", p)
	}
	if p, _ := o.watched.f.knows(); p.Observed != "" {
		t.Errorf("observed %+v", p)
	}
	if f.paths.Load() != 1 {
		t.Errorf("%d Paths, want one", f.paths.Load())
	}
	// The first Path is complete.
	var second counter
	o.w.Follow(underlay.Query{Local: local, Remote: remote, Link: index, Observers: true}, &second)
	if p := second.path.Load(); !strings.Contains(p.Observed, "all links") || second.paths.Load() != 1 {
		t.Errorf("the first of %d Paths is %+v", second.paths.Load(), p)
	}
}

// The observers are known before the first Path, also after nobody has asked for a while.
func TestObserved_AgainFromTheStart(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "root", "ip")
	o := &observing{watched: watch(t), t: t}
	for range 2 {
		closeSocket := o.packetSocket(unix.ETH_P_ALL, 0)
		for _, want := range []bool{true, false} {
			var f counter
			following := o.w.Follow(underlay.Query{Local: local, Remote: remote, Observers: true}, &f)
			if p := f.path.Load(); strings.Contains(p.Observed, "all links") != want || f.paths.Load() != 1 {
				t.Errorf("the first of %d Paths is %+v, want the socket: %v", f.paths.Load(), p, want)
			}
			following.Close()
			closeSocket()
		}
	}
}

// A link that is not there is not known to be unobserved.
func TestObserved_NoLink(t *testing.T) {
	o := observe(t)
	ip(t, o.host, []string{"link del t0"})
	o.wait("not known")
}

// observe makes n links, and follows a path for each, with observers.
func (c *crowd) observe(t testing.TB, n int) {
	t.Helper()
	var lines []string
	for i := range n / 2 {
		lines = append(lines, fmt.Sprintf("link add v%d type veth peer name v%d", i, i+n/2))
	}
	ip(t, c.host, lines)
	links, err := c.host.Netlink().LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if i := 0; l.Type() == "veth" && l.Attrs().Name[0] == 'v' {
			_, _ = fmt.Sscanf(l.Attrs().Name, "v%d", &i)
			c.follow(underlay.Query{Local: local, Remote: remoteOf(i), Link: l.Attrs().Index, NextHop: true, Observers: true})
		}
	}
	c.waitAll(t, "no observer", func(p *underlay.Path) bool { return p != nil && p.Observed == "" })
}

// The links of many tunnels, which are made with noqueue, lead to no list of qdiscs each.
func TestScale_Noqueue(t *testing.T) {
	c := newCrowd(t, 0)
	const links = 400
	c.observe(t, links)
	for _, f := range c.followings[1:] {
		f.Close()
	}
	requests, start := c.w.Requests(), time.Now()
	list, err := c.host.Netlink().LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		if l.Attrs().Name[0] != 'v' {
			continue
		}
		if err := c.host.Netlink().QdiscAdd(&netlink.GenericQdisc{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_ROOT},
			QdiscType:  "noqueue",
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.host.Netlink().QdiscAdd(clsact(t, c.host, "eth0")); err != nil { // the last event
		t.Fatal(err)
	}
	labtest.WaitFor(t, "the qdisc that matters", func() bool { return c.followers[0].path.Load().Observed != "" })
	const perPoll = 3
	polls := int(time.Since(start)/time.Second) + 2
	got := c.w.Requests() - requests
	t.Logf("%d requests in %v", got, time.Since(start))
	if got > perPoll*polls {
		t.Errorf("%d requests for %d qdiscs that do not matter, want at most %d", got, links, perPoll*polls)
	}
}

// What concerns one link is published to its Follower, and what concerns all once to each,
// without lookups.
func TestScale_Observers(t *testing.T) {
	c := newCrowd(t, 0)
	c.observe(t, many)
	paths, settled := c.paths(), c.settled()
	links := map[*counter]int64{}
	for _, f := range c.followers {
		links[f] = f.links.Load()
	}
	ip(t, c.host, []string{"link set eth0 promisc on", "link set v7 promisc on"})
	labtest.WaitFor(t, "one promiscuous link", func() bool {
		n := 0
		for _, f := range c.followers {
			if strings.Contains(f.path.Load().Observed, "promiscuous") {
				n++
			}
		}
		return n == 1
	})
	ip(t, c.host, []string{"link set v7 promisc off"})
	c.waitAll(t, "none", func(p *underlay.Path) bool { return p.Observed == "" })
	if got := c.paths() - paths; got != 2 {
		t.Errorf("%d new Paths, want two", got)
	}
	paths = c.paths()
	if err := c.host.Netlink().QdiscAdd(clsact(t, c.host, "eth0")); err != nil {
		t.Fatal(err)
	}
	c.waitAll(t, "the qdisc", func(p *underlay.Path) bool { return strings.Contains(p.Observed, "eth0 has a qdisc") })
	if err := c.host.Netlink().QdiscDel(clsact(t, c.host, "eth0")); err != nil {
		t.Fatal(err)
	}
	c.waitAll(t, "its end", func(p *underlay.Path) bool { return p.Observed == "" })
	if got := c.paths() - paths; got != 2*many {
		t.Errorf("%d new Paths, want two for each of %d", got, many)
	}
	if got, most := c.settled()-settled, c.polled(); got > most {
		t.Errorf("%d lookups, want at most %d", got, most)
	}
	for _, f := range c.followers {
		if f.links.Load() != links[f] {
			t.Error("LinkChanged was called without a change that it tells")
		}
	}
}
