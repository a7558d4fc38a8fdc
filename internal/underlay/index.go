package underlay

import (
	"net/netip"
	"slices"
)

// set is a set of Followings.
type set map[*Following]struct{}

// index holds Followings by a property that several may share.
type index[K comparable] map[K]set

func (x index[K]) add(key K, f *Following) {
	s := x[key]
	if s == nil {
		s = set{}
		x[key] = s
	}
	s[f] = struct{}{}
}

func (x index[K]) remove(key K, f *Following) {
	delete(x[key], f)
	if len(x[key]) == 0 {
		delete(x, key)
	}
}

// neighbour is a next hop, as events about neighbours name it.
type neighbour struct {
	device int
	addr   netip.Addr
}

// dependencies are what the path of a Following depended on when it was looked up last.
// The zero value of each means none.
type dependencies struct {
	bound       int // index of the Query's device
	device      int // index of the route's device
	neighbour   neighbour
	unreachable bool // there was no path
	foreign     bool // the source was the route's, and no address of its device
}

// followings are all Followings of a Watcher, indexed so that an event costs work for
// those that it concerns, and not for all.
type followings struct {
	byRemote  []*Following // sorted by remote address
	byLocal   index[netip.Addr]
	byOwnLink index[int]    // Query.Link
	byName    index[string] // Query.Device

	byLink      index[int] // dependencies.bound and device
	byNeighbour index[neighbour]
	unreachable set
	foreign     set

	observing set // with Query.Observers

	lookups set // being looked up: what changes now may concern them
}

func newFollowings() followings {
	return followings{
		byLocal:     index[netip.Addr]{},
		byOwnLink:   index[int]{},
		byName:      index[string]{},
		byLink:      index[int]{},
		byNeighbour: index[neighbour]{},
		unreachable: set{},
		foreign:     set{},
		observing:   set{},
		lookups:     set{},
	}
}

func (s *followings) add(f *Following) {
	i, _ := s.find(f.query.Remote)
	s.byRemote = slices.Insert(s.byRemote, i, f)
	s.byLocal.add(f.query.Local, f)
	if f.query.Link != 0 {
		s.byOwnLink.add(f.query.Link, f)
	}
	if f.query.Device != "" {
		s.byName.add(f.query.Device, f)
	}
	if f.query.Observers {
		s.observing[f] = struct{}{}
	}
}

func (s *followings) remove(f *Following) {
	i, _ := s.find(f.query.Remote)
	for i < len(s.byRemote) && s.byRemote[i] != f {
		i++
	}
	if i == len(s.byRemote) {
		return // removed before
	}
	s.byRemote = slices.Delete(s.byRemote, i, i+1)
	s.byLocal.remove(f.query.Local, f)
	s.byOwnLink.remove(f.query.Link, f)
	s.byName.remove(f.query.Device, f)
	delete(s.observing, f)
	s.setDependencies(f, dependencies{})
}

// find returns the place of the first Following to a remote address.
func (s *followings) find(remote netip.Addr) (i int, ok bool) {
	return slices.BinarySearchFunc(s.byRemote, remote, func(f *Following, a netip.Addr) int {
		return f.query.Remote.Compare(a)
	})
}

// setDependencies indexes f by d instead of what its path depended on before.
func (s *followings) setDependencies(f *Following, d dependencies) {
	if f.depends == d {
		return
	}
	s.byLink.remove(f.depends.bound, f)
	s.byLink.remove(f.depends.device, f)
	s.byNeighbour.remove(f.depends.neighbour, f)
	delete(s.unreachable, f)
	delete(s.foreign, f)
	f.depends = d
	for _, link := range []int{d.bound, d.device} {
		if link != 0 {
			s.byLink.add(link, f)
		}
	}
	if d.neighbour != (neighbour{}) {
		s.byNeighbour.add(d.neighbour, f)
	}
	if d.unreachable {
		s.unreachable[f] = struct{}{}
	}
	if d.foreign {
		s.foreign[f] = struct{}{}
	}
}

// doubt has the Followings of s looked up again.
func (s set) doubt() {
	for f := range s {
		f.doubt()
	}
}

// publishAgain publishes the paths of s with what does not come from a lookup. It needs mu.
func (s set) publishAgain() {
	for f := range s {
		f.publishAgain()
	}
}

// doubtTo has all Followings looked up again whose remote address is within p.
func (s *followings) doubtTo(p netip.Prefix) {
	i, _ := s.find(p.Masked().Addr())
	for _, f := range s.byRemote[i:] {
		if !p.Contains(f.query.Remote) {
			return
		}
		f.doubt()
	}
}
