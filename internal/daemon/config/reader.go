package config

import (
	"strings"

	"goipip/internal/tunnel"

	"github.com/pelletier/go-toml/v2/unstable"
)

// reader makes one configuration of several documents.
type reader struct {
	file  File
	errs  []*Error
	first map[string]string    // where each tunnel and key of the process was given first
	ends  map[[2]string]string // the tunnel between these ends, as they are written, and where it is
}

func newReader() *reader {
	return &reader{first: map[string]string{}, ends: map[[2]string]string{}}
}

// read adds what d says, and all errors of d.
func (r *reader) read(d *document) {
	for _, n := range d.root.kids {
		k := keyOf(processKeys, n.name)
		switch {
		case n.name == "tunnel":
			r.readTunnels(d, n)
		case k != nil:
			r.claim(d, n)
			k.read(&scope{d, k.want}, n, &r.file)
		case keyOf(tunnelKeys, n.name) != nil:
			d.fail(n.keyAt, n.path(), "stands outside of a table: put it below [tunnel.NAME]")
		default:
			d.fail(n.keyAt, n.path(), "%s", unknown(n.name, append([]string{"tunnel"}, ProcessKeys()...)))
		}
	}
	d.check()
	r.errs = append(r.errs, d.errs...)
}

// claim says so if another file has given the tunnel or key n.
func (r *reader) claim(d *document, n *node) {
	if n.twice {
		return // d knows
	}
	if where, ok := r.first[n.path()]; ok {
		n.twice = true
		d.fail(n.keyAt, n.path(), "%s", given(where))
		return
	}
	r.first[n.path()] = d.where(n.keyAt)
}

func (r *reader) readTunnels(d *document, all *node) {
	if all.kind != unstable.Table {
		d.fail(all.at, all.path(), "is %s: must be a table, as [tunnel.NAME]", typeNames[all.kind])
		return
	}
	for _, n := range all.kids {
		if n.kind != unstable.Table {
			d.fail(n.at, n.path(), "is %s: must be a table, as [tunnel.NAME]", typeNames[n.kind])
			continue
		}
		r.claim(d, n)
		r.readTunnel(d, n)
	}
}

func (r *reader) readTunnel(d *document, n *node) {
	t := newTunnel(n.name)
	t.File = d.name
	t.Line, _ = d.position(n.keyAt)
	good := readTable(d, n, tunnelKeys, &t)
	if n.name == "" {
		d.fail(n.keyAt, n.path(), "a tunnel needs the name of its link: write [tunnel.NAME]")
	}
	if n.twice {
		return // what is missing may stand in the first one
	}
	if !n.cut {
		for _, e := range t.whole().FieldErrors() {
			d.fieldError(n, good, e)
		}
	}
	if good["local"] && good["remote"] {
		r.pair(d, n, &t)
	}
	r.file.Tunnels = append(r.file.Tunnels, t)
}

// whole is the Config with what t has beside it.
func (t *Tunnel) whole() tunnel.Config {
	c := t.Config
	c.Addresses = t.Addresses
	for _, r := range t.Routes {
		c.Routes = append(c.Routes, tunnel.Route(r))
	}
	return c
}

// fieldError adds what Validate says about the tunnel n, unless it comes of a key that
// is wrong by itself, or of a list's element about which something was said.
func (d *document) fieldError(n *node, good map[string]bool, e *tunnel.FieldError) {
	for _, f := range e.Fields() {
		if list, _, ok := strings.Cut(f, "["); ok {
			if element, _, _ := strings.Cut(f, "]"); n.known[list] == nil || d.said(n.path()+"."+element+"]") {
				return
			}
		} else if !good[f] && f != "name" {
			return
		}
	}
	problem := strings.TrimPrefix(e.Error(), e.Field+" ")
	switch kid := n.find(e.Field); {
	case e.Field == "name":
		d.fail(n.keyAt, n.path(), "%s", problem)
	case kid == nil:
		d.fail(n.keyAt, n.path()+"."+e.Field, "%s", problem)
	default:
		d.fail(kid.at, kid.path(), "%s", problem)
	}
}

// pair says so if another tunnel has the same ends (O7).
func (r *reader) pair(d *document, n *node, t *Tunnel) {
	ends := [2]string{localText(&t.Config), remoteText(&t.Config)}
	if ends[1] == "" {
		return
	}
	if other, ok := r.ends[ends]; ok {
		d.fail(n.known["remote"].at, n.known["remote"].path(),
			"%s is between %s and %s too: give each tunnel a pair of ends of its own", other, ends[0], ends[1])
		return
	}
	r.ends[ends] = n.path() + " at " + d.where(n.keyAt)
}

// readTable reads the table n into v. It returns the keys about which nothing was
// said; a key that another one may have been meant to be is not among them.
func readTable[T any](d *document, n *node, keys []key[T], v *T) map[string]bool {
	good := map[string]bool{}
	for _, k := range keys {
		good[k.name] = true
	}
	for _, kid := range n.kids {
		k := keyOf(keys, kid.name)
		if k == nil {
			good[near(kid.name, names(keys))] = false
			d.fail(kid.keyAt, kid.path(), "%s", unknown(kid.name, names(keys)))
			continue
		}
		before := len(d.errs)
		k.read(&scope{d, k.want}, kid, v)
		if len(d.errs) > before || kid.twice {
			good[k.name] = false
		}
	}
	return good
}
