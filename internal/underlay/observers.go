package underlay

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// observers are what sees packets of links here, or packets that come by a device, but not
// those that a program at tc's hooks (tcx) moves between the two. They are kept up to date
// while a Following asks for them; Link.observed has the rest.
//
// Of what leaves by a link, the program at its egress leaves nothing to packet sockets and
// qdiscs (sch_handle_egress, before dev_hard_start_xmit in net/core/dev.c). Of what comes by
// a device, the program at its ingress leaves nothing to later filters of tc, chains of
// nftables, and packet sockets for IPv4; those for all protocols are served earlier
// (__netif_receive_skb_core in net/core/dev.c).
type observers struct {
	links   string // why Followers' own links cannot be read; empty if they can
	sockets packetSockets
	qdiscs  qdiscs
	netdev  string // what nftables has at devices; empty for nothing
}

// notYet is why nothing is known of observers before they have been read once.
const notYet = "it has not been read yet"

// forgetObservers has all of them read again. It needs mu.
func (w *Watcher) forgetObservers() {
	w.observers.links, w.observers.sockets, w.observers.qdiscs = "", packetSockets{unknown: notYet}, qdiscs{unknown: notYet}
	w.stale.links, w.stale.sockets, w.stale.qdiscs = true, true, true
}

// observed returns what observes packets of a link, or those that come by a device; empty for
// nothing. What cannot be read counts as an observer. It needs mu.
func (w *Watcher) observed(link, device int) string {
	o, dev := &w.observers, w.links.byIndex[device]
	if link != 0 {
		l, here := w.links.byIndex[link]
		switch {
		case !here:
			return "the link is not known (yet)"
		case l.observed.promiscuous:
			return "the link is promiscuous (tcpdump)"
		case l.observed.xdp:
			return "an XDP program is on the link"
		case o.links != "":
			return "cannot tell whether an XDP program is on the link: " + o.links
		}
	}
	switch {
	case o.sockets.unknown != "":
		return "cannot tell whether packet sockets listen: " + o.sockets.unknown
	case o.sockets.has(0, unix.ETH_P_ALL), o.sockets.has(0, unix.ETH_P_IP):
		return "a packet socket listens on all links"
	case o.sockets.has(link, unix.ETH_P_ALL), o.sockets.has(link, unix.ETH_P_IP):
		return "a packet socket listens on the link"
	case o.sockets.has(device, unix.ETH_P_IP):
		return "a packet socket for IPv4 listens on " + dev.Name
	case o.qdiscs.unknown != "":
		return "cannot tell which qdiscs there are: " + o.qdiscs.unknown
	case link != 0 && o.qdiscs.at[link] != "":
		return "the link has a qdisc: " + o.qdiscs.at[link]
	case o.qdiscs.ingress[device] != "":
		return dev.Name + " has a qdisc for what comes: " + o.qdiscs.ingress[device]
	}
	return o.netdev
}

// setNetdev tells all Followers that ask for observers what nftables has at devices. It needs
// mu.
func (w *Watcher) setNetdev(found string) {
	if w.observers.netdev != found {
		w.observers.netdev = found
		w.followings.observing.publishAgain()
	}
}

// readObservers reads what is stale of them.
func (w *Watcher) readObservers(stale stale) {
	if stale.links {
		w.mu.Lock()
		links := w.nextLinks()
		w.mu.Unlock()
		w.readLinks(links)
	}
	if stale.sockets {
		sockets := w.kernel.packetSockets()
		w.mu.Lock()
		if !sockets.equal(w.observers.sockets) {
			w.observers.sockets = sockets
			w.followings.observing.publishAgain()
		}
		w.mu.Unlock()
	}
	if stale.qdiscs {
		qdiscs := w.kernel.listQdiscs()
		w.mu.Lock()
		w.stale.qdiscs = w.stale.qdiscs || qdiscs.unknown != ""
		if !qdiscs.equal(w.observers.qdiscs) {
			w.observers.qdiscs = qdiscs
			w.followings.observing.publishAgain()
		}
		w.mu.Unlock()
	}
}

// packetSocket is what a packet socket is bound to (packet(7)).
type packetSocket struct {
	link     int // its index; 0 for all links
	protocol uint16
}

// packetSockets are those that receive packets of all protocols or of IPv4.
type packetSockets struct {
	unknown string // why they cannot be read; empty if they can
	bound   map[packetSocket]struct{}
}

func (s *packetSockets) has(link int, protocol uint16) bool {
	_, ok := s.bound[packetSocket{link, protocol}]
	return ok
}

func (s *packetSockets) equal(t packetSockets) bool {
	return s.unknown == t.unknown && maps.Equal(s.bound, t.bound)
}

// packetSockets reads the packet sockets of the namespace, which no event announces. Their
// file in /proc is as old as they are, and needs neither a privilege nor a module.
// NETLINK_SOCK_DIAG has them only with the module packet_diag: where that is missing, each
// request would have the kernel try to load it.
func (k *kernel) packetSockets() packetSockets {
	var lines []byte
	err := k.namespace.do(func() error {
		proc, err := os.OpenRoot("/proc/thread-self/net")
		if err != nil {
			return err // also ErrNotExist: there may be sockets all the same
		}
		defer proc.Close()
		lines, err = proc.ReadFile("packet")
		if errors.Is(err, os.ErrNotExist) {
			return nil // the module af_packet is not loaded
		}
		return err
	})
	if err != nil {
		return packetSockets{unknown: err.Error()}
	}
	return parsePacketSockets(string(lines))
}

// parsePacketSockets reads /proc/net/packet (packet_seq_show in net/packet/af_packet.c).
// Whether a socket receives at the moment does not count: one on a link that is down begins
// when that comes up.
func parsePacketSockets(file string) packetSockets {
	s := packetSockets{bound: map[packetSocket]struct{}{}}
	heading := true
	for line := range strings.Lines(file) {
		if heading {
			heading = false
			continue
		}
		// sk RefCnt Type Proto Iface R Rmem User Inode
		fields := strings.Fields(line)
		if len(fields) < 5 {
			return packetSockets{unknown: fmt.Sprintf("/proc/net/packet has the line %q", line)}
		}
		protocol, err := strconv.ParseUint(fields[3], 16, 16)
		link, err2 := strconv.Atoi(fields[4])
		if err := errors.Join(err, err2); err != nil {
			return packetSockets{unknown: fmt.Sprintf("/proc/net/packet has the line %q", line)}
		}
		if protocol == unix.ETH_P_ALL || protocol == unix.ETH_P_IP {
			s.bound[packetSocket{link, uint16(protocol)}] = struct{}{}
		}
	}
	return s
}

// qdiscs are those that may do something with packets, by the index of their link.
type qdiscs struct {
	unknown string         // why they cannot be read; empty if they can
	at      map[int]string // kind of the first one of each link, unless it is plain
	ingress map[int]string // kind of the one with filters for what comes
}

func (q *qdiscs) equal(t qdiscs) bool {
	return q.unknown == t.unknown && maps.Equal(q.at, t.at) && maps.Equal(q.ingress, t.ingress)
}

// isPlain reports whether a qdisc neither queues nor filters: noqueue, and noop, which a link
// has that is down, and no list shows.
func isPlain(kind string) bool { return kind == "noqueue" || kind == "noop" }

// listQdiscs lists the qdiscs of all links, having joined the group of the events about them.
func (k *kernel) listQdiscs() qdiscs {
	if err := join(k.qdiscs, unix.RTNLGRP_TC); err != nil {
		return qdiscs{unknown: fmt.Sprintf("follow them: %v", err)}
	}
	messages, err := k.dump(syscall.RTM_GETQDISC, syscall.RTM_NEWQDISC, &nl.TcMsg{})
	if err != nil && !errors.Is(err, syscall.EOPNOTSUPP) { // that is a kernel without qdiscs
		return qdiscs{unknown: fmt.Sprintf("list them: %v", err)}
	}
	q := qdiscs{at: map[int]string{}, ingress: map[int]string{}}
	for _, message := range messages {
		link, kind := parseQdisc(message)
		if isPlain(kind) {
			continue
		}
		if q.at[link] == "" {
			q.at[link] = kind
		}
		if kind == "ingress" || kind == "clsact" {
			q.ingress[link] = kind
		}
	}
	return q
}

// parseQdisc reads an RTM_NEWQDISC or RTM_DELQDISC.
func parseQdisc(message []byte) (link int, kind string) {
	if len(message) < nl.SizeofTcMsg {
		return 0, ""
	}
	for _, a := range attributes(message[nl.SizeofTcMsg:]) {
		if a.Attr.Type&^nlaFlags == nl.TCA_KIND {
			kind = text(a.Value)
		}
	}
	return int(nl.DeserializeTcMsg(message).Ifindex), kind
}

// qdiscEvent has the qdiscs listed again after an event. An event tells not all: without a
// qdisc of its own, a link gets the default one silently (attach_default_qdiscs in
// net/sched/sch_generic.c).
func (w *Watcher) qdiscEvent(m syscall.NetlinkMessage) {
	if m.Header.Type != syscall.RTM_NEWQDISC && m.Header.Type != syscall.RTM_DELQDISC {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	link, kind := parseQdisc(m.Data)
	if m.Header.Type == syscall.RTM_NEWQDISC && isPlain(kind) && w.observers.qdiscs.at[link] == "" {
		return // a tunnel's link is made with noqueue: many of them make no lists
	}
	w.qdiscsChanged()
}

// qdiscsChanged has the next pass list the qdiscs. It needs mu.
func (w *Watcher) qdiscsChanged() {
	if len(w.followings.observing) > 0 {
		w.stale.qdiscs = true
		w.request()
	}
}

// linksPerPoll is how many of Followers' own links a poll reads again.
const linksPerPoll = 100

// nextLinks returns the links that the next poll reads: all that are asked about, or if these
// are many, the next in turn. It needs mu.
func (w *Watcher) nextLinks() (list []Link) {
	all := w.followings.byRemote
	for range all {
		w.nextLink = (w.nextLink + 1) % len(all)
		f := all[w.nextLink]
		if l, here := w.links.byIndex[f.query.Link]; here && f.query.Observers {
			if list = append(list, l); len(list) == linksPerPoll {
				break
			}
		}
	}
	return list
}

// readLinks reads links again. An XDP program comes and goes without an event if it is
// attached by a BPF link, or if the network link is down (bpf_xdp_link_attach in
// net/core/dev.c, do_setlink in net/core/rtnetlink.c).
func (w *Watcher) readLinks(list []Link) {
	for _, before := range list {
		l, err := w.kernel.readLink(before.Index)
		if errors.Is(err, syscall.ENODEV) {
			continue // an event tells
		}
		w.mu.Lock()
		unknown := ""
		if err != nil {
			unknown = err.Error()
		}
		if w.observers.links != unknown {
			w.observers.links = unknown
			w.followings.observing.publishAgain()
		}
		// If an event came meanwhile, it may be newer than this.
		if err == nil && w.links.byIndex[l.Index] == before {
			w.setLink(l)
		}
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// readLink reads the link with an index, without its counters.
func (k *kernel) readLink(index int) (l Link, err error) {
	const skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h
	header := nl.NewIfInfomsg(syscall.AF_UNSPEC)
	header.Index = int32(index)
	messages, err := k.request(syscall.NETLINK_ROUTE, syscall.RTM_GETLINK, 0, syscall.RTM_NEWLINK, header,
		nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	if err != nil {
		return l, err
	}
	if len(messages) > 0 {
		if l, ok := parseLink(messages[0]); ok {
			return l, nil
		}
	}
	return l, errors.New("no answer about the link")
}
