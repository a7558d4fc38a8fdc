package underlay

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"
)

// address is an IPv4 address of a link, with what distinguishes it from others there.
type address struct {
	link        int
	local, peer netip.Addr
	bits        int
	scope       uint8 // RT_SCOPE_UNIVERSE, which is 0, is global (rtnetlink(7))
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
	a.link, a.bits, a.scope = int(header.Index), int(header.Prefixlen), header.Scope
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

// linkAddress is a local address of a link.
type linkAddress struct {
	link  int
	local netip.Addr
}

// addresses are the IPv4 addresses of the links of a namespace.
type addresses struct {
	all    map[address]struct{}
	count  map[netip.Addr]int  // how many of all have this local address
	onLink map[linkAddress]int // and are of this link

	own     []netip.Addr            // the keys of count at the last update, sorted; never modified
	touched map[netip.Addr]struct{} // local addresses added or removed since then
}

func newAddresses() addresses {
	return addresses{
		all:     map[address]struct{}{},
		count:   map[netip.Addr]int{},
		onLink:  map[linkAddress]int{},
		touched: map[netip.Addr]struct{}{},
	}
}

func (s *addresses) add(a address) {
	if _, ok := s.all[a]; ok {
		return
	}
	s.all[a] = struct{}{}
	s.count[a.local]++
	s.onLink[linkAddress{a.link, a.local}]++
	s.touched[a.local] = struct{}{}
}

func (s *addresses) remove(a address) {
	if _, ok := s.all[a]; !ok {
		return
	}
	delete(s.all, a)
	s.count[a.local]--
	if s.count[a.local] == 0 {
		delete(s.count, a.local)
	}
	of := linkAddress{a.link, a.local}
	s.onLink[of]--
	if s.onLink[of] == 0 {
		delete(s.onLink, of)
	}
	s.touched[a.local] = struct{}{}
}

// replace makes s hold exactly the addresses of all.
func (s *addresses) replace(all map[address]struct{}) {
	for a := range s.all {
		if _, ok := all[a]; !ok {
			s.remove(a)
		}
	}
	for a := range all {
		s.add(a)
	}
}

// has reports whether own contains a.
func (s *addresses) has(a netip.Addr) bool {
	_, ok := slices.BinarySearchFunc(s.own, a, netip.Addr.Compare)
	return ok
}

// update brings own up to date, and returns the addresses that it has gained and lost.
func (s *addresses) update() (changed []netip.Addr) {
	for a := range s.touched {
		if (s.count[a] > 0) != s.has(a) {
			changed = append(changed, a)
		}
	}
	clear(s.touched)
	if changed != nil {
		s.own = slices.SortedFunc(maps.Keys(s.count), netip.Addr.Compare)
	}
	return changed
}

// FollowAddresses calls f at once with the IPv4 addresses of this host, sorted and each
// once, and again whenever they change, until the Watcher is closed. Changes in quick
// succession may come as one. f must not modify the slice. It is called with the Watcher
// locked: it must neither wait nor call the Watcher.
func (w *Watcher) FollowAddresses(f func(own []netip.Addr)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.onAddresses = append(w.onAddresses, f)
	f(w.addresses.own)
}

// FollowDevice calls f whenever the first address of the device called name may have changed,
// until cancel. It is called with the Watcher locked: it must neither wait nor call the
// Watcher.
func (w *Watcher) FollowDevice(name string, f func()) (cancel func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.onDevice[name] == nil {
		w.onDevice[name] = map[*func()]struct{}{}
	}
	w.onDevice[name][&f] = struct{}{}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.onDevice[name], &f)
		if len(w.onDevice[name]) == 0 {
			delete(w.onDevice, name)
		}
	}
}

// deviceChanged calls those who follow a link by one of its names. It needs mu.
func (w *Watcher) deviceChanged(l Link) {
	for name := range l.names() {
		for f := range w.onDevice[name] {
			(*f)()
		}
	}
}

// FirstAddress returns the first IPv4 address, in the order of ip address show, of the device
// called name, of global scope if there is one. It waits for the kernel.
func (w *Watcher) FirstAddress(name string) (netip.Addr, error) {
	l, ok := w.LinkByName(name)
	if !ok {
		return netip.Addr{}, errors.New("there is no such device")
	}
	messages, err := w.kernel.dumpAddresses()
	if err != nil {
		return netip.Addr{}, err
	}
	var first address
	for _, message := range messages {
		if a, ok := parseAddress(message); ok && a.link == l.Index && (!first.local.IsValid() || a.scope < first.scope) {
			first = a
		}
	}
	if !first.local.IsValid() {
		return netip.Addr{}, errors.New("the device has no IPv4 address")
	}
	return first.local, nil
}

// addressesChanged requests an update of the addresses, of which one of a link has come, gone or
// changed. It needs mu.
func (w *Watcher) addressesChanged(link int) {
	w.stale.own = true
	w.doubtSources(link)
	w.deviceChanged(w.links.byIndex[link])
	w.request()
}

// setOwn brings the addresses of this host up to date, and has the paths looked up
// again whose local address has come or gone. It needs mu.
func (w *Watcher) setOwn() {
	changed := w.addresses.update()
	if changed == nil {
		return
	}
	for _, f := range w.onAddresses {
		f(w.addresses.own)
	}
	for _, a := range changed {
		for f := range w.followings.byLocal[a] {
			f.publishAgain() // with LocalMissing
			f.doubt()
		}
	}
}

// doubtSources has the paths looked up again whose source, which is the route's, an address
// of a link may change: those by that link, and those whose source is no address of their
// link. The kernel tells of an address before its routes know of it (__inet_insert_ifa in
// net/ipv4/devinet.c), so that is done once more, later. It needs mu.
func (w *Watcher) doubtSources(link int) {
	for _, s := range []set{w.followings.byLink[link], w.followings.foreign, w.followings.lookups} {
		for f := range s {
			if !f.query.Local.IsValid() {
				f.doubt()
				f.Retry()
			}
		}
	}
}

// isForeign reports whether the source of a path, which is the route's, is no address of the
// device that packets leave by, as far as that is known. It needs mu.
func (w *Watcher) isForeign(a *answer, q Query) bool {
	if q.Local.IsValid() || a.path.Reason != "" && a.device == 0 {
		return false
	}
	return w.addresses.onLink[linkAddress{a.device, a.path.Source}] == 0
}

// listAddresses reads the IPv4 addresses of all links.
func (k *kernel) listAddresses() (map[address]struct{}, error) {
	messages, err := k.dumpAddresses()
	if err != nil {
		return nil, err
	}
	all := make(map[address]struct{}, len(messages))
	for _, message := range messages {
		if a, ok := parseAddress(message); ok {
			all[a] = struct{}{}
		}
	}
	return all, nil
}

// dumpAddresses returns an RTM_NEWADDR for each IPv4 address.
func (k *kernel) dumpAddresses() ([][]byte, error) {
	messages, err := k.dump(syscall.RTM_GETADDR, syscall.RTM_NEWADDR, nl.NewIfAddrmsg(syscall.AF_INET))
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return messages, nil
}
