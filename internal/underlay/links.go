package underlay

import (
	"fmt"
	"iter"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Link is a link of this namespace.
type Link struct {
	Index    int
	Name     string
	altNames string // each ends with a zero byte
	Kind     string // as in ip link show type; empty for hardware
	MTU      int    // in bytes
	Ethernet bool   // its link layer
	Up       bool
	Carrier  bool // it is up, and so is its lower layer
	observed linkObservers
}

// linkObservers are what may see packets of a link, as far as the link itself tells.
type linkObservers struct {
	promiscuous bool   // some packet socket has made it so
	xdp         bool   // it has an XDP program
	qdisc       string // kind of its qdisc for packets that leave
}

// String returns the link's name and kind, for messages.
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

	iflaXDPAttached = 2 // IFLA_XDP_ATTACHED
)

// names yields the link's names.
func (l Link) names() iter.Seq[string] {
	return func(yield func(string) bool) {
		if l.Name != "" && !yield(l.Name) {
			return
		}
		for name := range strings.SplitSeq(l.altNames, "\x00") {
			if name != "" && !yield(name) {
				return
			}
		}
	}
}

// parseLink reads an RTM_NEWLINK or RTM_DELLINK. It reports false for a message about
// something else: a bridge port, or a wireless event, which has no MTU.
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
	l.Carrier = header.Flags&unix.IFF_LOWER_UP != 0
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
		case unix.IFLA_PROMISCUITY:
			l.observed.promiscuous = number(a.Value) > 0
		case unix.IFLA_XDP:
			for _, xdp := range attributes(a.Value) {
				if xdp.Attr.Type == iflaXDPAttached {
					l.observed.xdp = len(xdp.Value) > 0 && xdp.Value[0] != 0
				}
			}
		case syscall.IFLA_QDISC:
			l.observed.qdisc = text(a.Value)
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

// links are the links of a namespace.
type links struct {
	byIndex map[int]Link
	byName  map[string]int // index, by each of a link's names
}

func newLinks() links { return links{map[int]Link{}, map[string]int{}} }

// named returns the link with a name.
func (s *links) named(name string) (Link, bool) {
	l, ok := s.byIndex[s.byName[name]]
	return l, ok
}

func (s *links) set(l Link) {
	s.remove(l.Index)
	s.byIndex[l.Index] = l
	for name := range l.names() {
		s.byName[name] = l.Index
	}
}

func (s *links) remove(index int) {
	for name := range s.byIndex[index].names() {
		if s.byName[name] == index { // another link may have the name by now
			delete(s.byName, name)
		}
	}
	delete(s.byIndex, index)
}

// reload lists all links and addresses: at first, and after events were lost.
func (w *Watcher) reload() error {
	messages, err := w.kernel.dump(syscall.RTM_GETLINK, syscall.RTM_NEWLINK, nl.NewIfInfomsg(syscall.AF_UNSPEC))
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	addresses, err := w.kernel.listAddresses()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	here := map[int]bool{}
	for _, message := range messages {
		if l, ok := parseLink(message); ok {
			here[l.Index] = true
			w.setLink(l)
		}
	}
	for index := range w.links.byIndex {
		if !here[index] {
			w.linkGone(index)
		}
	}
	w.addresses.replace(addresses)
	w.setOwn()
	for _, followers := range w.onDevice {
		for f := range followers {
			(*f)()
		}
	}
	return nil
}

// setLink records what an event says of a link. It needs mu.
func (w *Watcher) setLink(l Link) {
	before, known := w.links.byIndex[l.Index]
	if known && before == l {
		return
	}
	w.links.set(l)
	if before.Name != l.Name || before.altNames != l.altNames {
		w.deviceChanged(before)
		w.deviceChanged(l)
	}
	if before.observed != l.observed {
		w.setLinkObservers(before, l)
		if before.observed = l.observed; before == l {
			return
		}
	}
	followers := w.followings.byOwnLink[l.Index]
	for f := range followers {
		f.follower.LinkChanged(l, true)
		if !known {
			f.publishAgain()
		}
	}
	w.doubtLink(l)
	// A link that comes up may revive routes without an event about them. Those into
	// Followers' own links are announced.
	if l.Up && l.Carrier && !(before.Up && before.Carrier) && len(followers) == 0 {
		w.followings.unreachable.doubt()
	}
}

// setLinkObservers records what an event says of what observes a link. It needs mu.
func (w *Watcher) setLinkObservers(before, l Link) {
	w.followings.byOwnLink[l.Index].publishAgain()
	// The kernel chooses a default qdisc without an event about qdiscs.
	if now := l.observed.qdisc; before.observed.qdisc != now && !(isPlain(now) && w.observers.qdiscs.at[l.Index] == "") {
		w.qdiscsChanged()
	}
}

// linkGone records that a link was deleted, or moved to another namespace. It needs mu.
func (w *Watcher) linkGone(index int) {
	l := w.links.byIndex[index]
	l.Index = index
	w.links.remove(index)
	w.deviceChanged(l)
	for f := range w.followings.byOwnLink[index] {
		f.follower.LinkChanged(Link{Index: index}, false)
		f.publishAgain()
	}
	w.doubtLink(l)
}

// doubtLink has the paths looked up again that depend on a link: no event announces that
// IPv4 routes vanish with theirs. It needs mu.
func (w *Watcher) doubtLink(l Link) {
	w.followings.lookups.doubt()
	w.followings.byLink[l.Index].doubt()
	for name := range l.names() {
		w.followings.byName[name].doubt()
	}
}

// text returns the value of a string attribute.
func text(value []byte) string {
	for i, b := range value {
		if b == 0 {
			return string(value[:i])
		}
	}
	return string(value)
}
