package underlay

import (
	"context"
	"errors"
	"net/netip"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Numbers of linux/rtnetlink.h.
const (
	newNextHop = 104 // RTM_NEWNEXTHOP, Linux 5.3
	delNextHop = 105
)

// listen calls handle with each message of s, and lost after some were lost, until ctx is
// done and s closed. No other error ends it.
func listen(ctx context.Context, s *nl.NetlinkSocket, handle func(syscall.NetlinkMessage), lost func()) {
	if s == nil {
		return
	}
	incomplete := false
	for {
		messages, from, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && from.Pid == nl.PidKernel:
			for _, m := range messages {
				handle(m)
			}
		case errors.Is(err, syscall.ENOBUFS): // more changed than the socket holds (netlink(7))
			incomplete = true
		case err != nil:
			incomplete = true
			time.Sleep(10 * time.Millisecond) // an error that stays must not spin
		}
		// Until the socket has been read empty, it goes on losing events without another
		// error (netlink_rcv_wake in net/netlink/af_netlink.c).
		if incomplete && empty(s) {
			incomplete = false
			lost()
		}
	}
}

// empty reports whether a socket holds no message.
func empty(s *nl.NetlinkSocket) bool {
	_, _, err := unix.Recvfrom(s.GetFd(), nil, unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return errors.Is(err, syscall.EAGAIN)
}

// listenRoutes follows rtnetlink(7). Nothing is listed again, unless events were lost.
func (w *Watcher) listenRoutes(ctx context.Context) {
	listen(ctx, w.kernel.routes, w.routeEvent, func() {
		if err := w.reload(); err != nil {
			w.log.Warn("events of this host were lost, and its links cannot be listed: keeping what was known", "err", err)
		}
		w.mu.Lock()
		w.stale.rules, w.stale.filters = true, true
		w.doubtAll()
		w.mu.Unlock()
	})
}

func (w *Watcher) routeEvent(m syscall.NetlinkMessage) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch m.Header.Type {
	case syscall.RTM_NEWLINK:
		if l, ok := parseLink(m.Data); ok {
			w.setLink(l)
		}
	case syscall.RTM_DELLINK:
		if l, ok := parseLink(m.Data); ok {
			w.linkGone(l.Index)
		}
	case syscall.RTM_NEWADDR:
		if a, ok := parseAddress(m.Data); ok {
			w.addresses.add(a)
			w.addressesChanged(a.link)
		}
	case syscall.RTM_DELADDR:
		if a, ok := parseAddress(m.Data); ok {
			w.addresses.remove(a)
			w.addressesChanged(a.link)
		}
	case syscall.RTM_NEWROUTE, syscall.RTM_DELROUTE:
		if to := destination(m.Data); to.Bits() == 0 {
			w.doubtAll()
		} else {
			w.followings.doubtTo(to)
		}
	case syscall.RTM_NEWNEIGH, syscall.RTM_DELNEIGH:
		if entry, err := netlink.NeighDeserialize(m.Data); err == nil {
			w.neighbourEvent(m.Header.Type == syscall.RTM_DELNEIGH, entry)
		}
	case syscall.RTM_NEWRULE, syscall.RTM_DELRULE:
		w.stale.rules = true
		w.doubtAll()
	case newNextHop, delNextHop:
		w.doubtAll()
	}
}

// destination returns the prefix of a route.
func destination(message []byte) netip.Prefix {
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if len(message) < syscall.SizeofRtMsg {
		return all
	}
	length := int(nl.DeserializeRtMsg(message).Dst_len)
	for _, a := range attributes(message[syscall.SizeofRtMsg:]) {
		if a.Attr.Type == syscall.RTA_DST {
			if to, ok := netip.AddrFromSlice(a.Value); ok {
				return netip.PrefixFrom(to, length)
			}
		}
	}
	return all
}

// listenQdiscs follows the events about qdiscs, from the first Following on that asks for
// observers.
func (w *Watcher) listenQdiscs(ctx context.Context) {
	listen(ctx, w.kernel.qdiscs, w.qdiscEvent, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.qdiscsChanged()
	})
}

// listenNFTables follows nftables. A new chain counts at once; the end of the last one is
// not urgent, and left to the next poll.
func (w *Watcher) listenNFTables(ctx context.Context) {
	listen(ctx, w.kernel.nftables, func(m syscall.NetlinkMessage) {
		w.kernel.noNFTables.Store(false)
		switch {
		case m.Header.Type != nftNewChain:
		case seesIPv4(m.Data):
			w.filterAdded(nftablesFound)
		case atDevice(m.Data):
			w.netdevAdded()
		}
	}, w.filtersChanged)
}

// listenIPsec follows IPsec policies in the same way, and the default policy.
func (w *Watcher) listenIPsec(ctx context.Context) {
	listen(ctx, w.kernel.ipsec, func(m syscall.NetlinkMessage) {
		switch m.Header.Type {
		case xfrmNewPolicy, xfrmUpdPolicy:
			if isIPv4Policy(m.Data) {
				w.filterAdded(ipsecFound)
			}
		case xfrmGetDefault:
			w.filtersChanged()
		}
	}, w.filtersChanged)
}

// filterAdded tells all Followers of a filter at once.
func (w *Watcher) filterAdded(found string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.filterEvent++
	w.setFiltered(found)
}

// netdevAdded tells the Followers that ask for observers of a chain at a device at once.
func (w *Watcher) netdevAdded() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.netdevEvent++
	w.setNetdev(netdevFound)
}

// filtersChanged has the next pass read the filters.
func (w *Watcher) filtersChanged() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.filterEvent++
	w.netdevEvent++
	w.stale.filters = true
	w.request()
}
