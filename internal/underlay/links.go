package underlay

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
)

// Link is what is known of a link of this namespace.
type Link struct {
	Index    int
	Name     string
	altNames string // separated by zero bytes
	Kind     string // as in ip link show type; empty for a device that no kind makes
	MTU      int    // in bytes
	Ethernet bool   // its link layer
	Up       bool
}

// String returns what the link is, for a message.
func (l Link) String() string {
	if l.Kind == "" {
		return l.Name
	}
	return l.Name + ", " + l.Kind
}

// Numbers of linux/if_link.h.
const (
	iflaPropList  = 52 // IFLA_PROP_LIST
	iflaAltIfname = 53 // IFLA_ALT_IFNAME
)

// named reports whether name is one of the link's.
func (l Link) named(name string) bool {
	return l.Name == name || slices.Contains(strings.Split(l.altNames, "\x00"), name)
}

// address is an address of a link, by what tells it from others.
type address struct {
	link        int
	local, peer netip.Addr
	bits        int
}

// parseLink reads an RTM_NEWLINK or RTM_DELLINK. It reports false for one about
// something else: a bridge's port, or an event of a wireless device, which has no MTU.
func parseLink(message []byte) (l Link, ok bool) {
	if len(message) < syscall.SizeofIfInfomsg {
		return l, false
	}
	header := nl.DeserializeIfInfomsg(message)
	if header.Family != syscall.AF_UNSPEC {
		return l, false
	}
	l.Index = int(header.Index)
	l.Ethernet = header.Type == syscall.ARPHRD_ETHER
	l.Up = header.Flags&syscall.IFF_UP != 0
	for _, a := range attributes(message[syscall.SizeofIfInfomsg:]) {
		switch a.Attr.Type &^ nlaFlags {
		case syscall.IFLA_IFNAME:
			l.Name = text(a.Value)
		case iflaPropList:
			for _, property := range attributes(a.Value) {
				if property.Attr.Type == iflaAltIfname {
					l.altNames += text(property.Value) + "\x00"
				}
			}
		case syscall.IFLA_MTU:
			l.MTU, ok = int(number(a.Value)), true
		case syscall.IFLA_LINKINFO:
			for _, info := range attributes(a.Value) {
				if info.Attr.Type == nl.IFLA_INFO_KIND {
					l.Kind = text(info.Value)
				}
			}
		}
	}
	return l, ok
}

// parseAddress reads an RTM_NEWADDR or RTM_DELADDR.
func parseAddress(message []byte) (a address, ok bool) {
	if len(message) < syscall.SizeofIfAddrmsg {
		return a, false
	}
	header := nl.DeserializeIfAddrmsg(message)
	if header.Family != syscall.AF_INET {
		return a, false
	}
	a.link, a.bits = int(header.Index), int(header.Prefixlen)
	for _, attr := range attributes(message[syscall.SizeofIfAddrmsg:]) {
		switch attr.Attr.Type {
		case syscall.IFA_LOCAL:
			a.local, ok = netip.AddrFromSlice(attr.Value)
		case syscall.IFA_ADDRESS:
			a.peer, _ = netip.AddrFromSlice(attr.Value)
		}
	}
	return a, ok
}

// reload reads all links and addresses: at first, and after events were lost.
func (w *Watcher) reload() error {
	links, err := w.kernel.dump(syscall.RTM_GETLINK, syscall.RTM_NEWLINK, nl.NewIfInfomsg(syscall.AF_UNSPEC))
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	addresses, err := w.kernel.dump(syscall.RTM_GETADDR, syscall.RTM_NEWADDR, nl.NewIfAddrmsg(syscall.AF_INET))
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.links
	w.links, w.addresses = map[int]Link{}, map[address]struct{}{}
	for _, message := range links {
		if l, ok := parseLink(message); ok {
			w.setLink(l)
		}
	}
	for _, message := range addresses {
		if a, ok := parseAddress(message); ok {
			w.addresses[a] = struct{}{}
		}
	}
	for index := range before {
		if _, ok := w.links[index]; !ok {
			w.linkGone(index)
		}
	}
	w.setOwn()
	return nil
}

// setLink takes over what an event tells of a link. It needs mu.
func (w *Watcher) setLink(l Link) {
	before, known := w.links[l.Index]
	if known && before == l {
		return
	}
	w.links[l.Index] = l
	for f := range w.followings {
		if f.query.Link == l.Index {
			f.follower.LinkChanged(l, true)
		}
		w.linkConcerns(f, l)
	}
}

// linkGone takes note of a link that was deleted, or moved to another namespace. It
// needs mu.
func (w *Watcher) linkGone(index int) {
	l := w.links[index]
	l.Index = index
	delete(w.links, index)
	for f := range w.followings {
		if f.query.Link == index {
			f.follower.LinkChanged(Link{Index: index}, false)
		}
		w.linkConcerns(f, l)
	}
}

// linkConcerns has f look again if a change of l may change its path: no event tells
// that IPv4 routes vanish with their link. It needs mu.
func (w *Watcher) linkConcerns(f *Following, l Link) {
	if f.lookedUp || l.Index == f.path.Device || f.path.Reason != "" ||
		f.query.Device != "" && (l.Index == f.bound || l.named(f.query.Device)) {
		f.stale.Store(true)
		w.request()
	}
}

// text is the value of an attribute that is a string.
func text(value []byte) string {
	for i, b := range value {
		if b == 0 {
			return string(value[:i])
		}
	}
	return string(value)
}
