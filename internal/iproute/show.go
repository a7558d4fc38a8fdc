package iproute

import (
	"syscall"
)

// show prints one tunnel, or those that are like the words (do_show in ip/iptunnel.c).
func (r *run) show(w words) error {
	p, err := r.parseExisting(w)
	if err != nil {
		return err
	}
	if p.defaultDevice() == "" {
		return r.list(p)
	}
	var t Tunnel
	name := p.Name
	if name == "" {
		if t, err = r.findLike(p); err != nil {
			name, err = base, syscall.ENODEV // ip would show the device tunl0
		}
	} else {
		t, err = r.find(name)
	}
	if err != nil {
		return refused("get tunnel \"%s\" failed: %s", name, err)
	}
	print := printer{Options: r.Options}
	print.JSON = false // and no counters, as in ip
	print.tunnel(&t.Config)
	print.text("\n")
	_, err = r.out.Write(print.b.Bytes())
	return err
}

// list prints all tunnels that are like p, in the parts of it that are given.
func (r *run) list(p *parameters) error {
	tunnels, err := r.backend.List(r.ctx, r.Stats)
	if err != nil {
		return err
	}
	print := printer{Options: r.Options}
	print.begin()
	for _, t := range tunnels {
		c := &t.Config
		if p.Device != "" && p.Device != c.Device || p.Name != "" && p.Name != c.Name ||
			p.Remote.IsValid() && p.Remote != c.Remote || p.Local.IsValid() && p.Local != c.Local {
			continue
		}
		print.tunnel(c)
		if r.Stats {
			print.counters(t.Counters)
		}
		print.text("\n")
	}
	print.end()
	_, err = r.out.Write(print.b.Bytes())
	return err
}
