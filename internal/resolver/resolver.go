// Package resolver looks up the IPv4 addresses of host names, and for how long they hold: in
// /etc/hosts, and then by the servers of /etc/resolv.conf (resolv.conf(5)). It keeps no
// answers.
package resolver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// Concurrent is the most lookups of a Resolver at once, each of which has a socket. Others
// wait for their turn.
const Concurrent = 64

// Resolver looks names up. Any goroutine may call its methods.
type Resolver struct {
	turns chan struct{} // holds one for each lookup
}

// New returns a Resolver.
func New() *Resolver { return &Resolver{turns: make(chan struct{}, Concurrent)} }

// Answer is what a name stands for.
type Answer struct {
	Addrs []netip.Addr // IPv4, at least one, in the order of the answer
	TTL   time.Duration
}

// hostsTTL is how long a line of /etc/hosts holds. To read it costs little.
const hostsTTL = 10 * time.Second

// Errors of Lookup.
var (
	errNoSuchName = errors.New("no such name (NXDOMAIN)")
	errNoIPv4     = errors.New("it has no IPv4 address, and ipip runs over IPv4 only")
)

// Lookup returns the addresses of a host name. It waits for the servers, as long as
// resolv.conf says, or until ctx is done. Both files are read anew each time.
func (r *Resolver) Lookup(ctx context.Context, name string) (Answer, error) {
	select {
	case r.turns <- struct{}{}:
		defer func() { <-r.turns }()
	case <-ctx.Done():
		return Answer{}, ctx.Err()
	}
	if a, err := inHosts(ctx, name); err == nil && len(a.Addrs) > 0 {
		return a, nil
	}
	conf, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil { // as resolv.conf(5) has it
		conf = &dns.ClientConfig{Servers: []string{"127.0.0.1"}, Port: "53", Ndots: 1, Timeout: 5, Attempts: 2}
	}
	var why error // about the likeliest of the names
	for _, full := range conf.NameList(name) {
		a, err := ask(ctx, conf, full)
		if err == nil {
			return a, nil
		}
		why = cmp.Or(why, err)
	}
	return Answer{}, why
}

// inHosts looks a name up in /etc/hosts, by Go's own resolver, which reaches no server.
func inHosts(ctx context.Context, name string) (Answer, error) {
	hosts := net.Resolver{
		PreferGo: true,
		Dial:     func(context.Context, string, string) (net.Conn, error) { return nil, errors.ErrUnsupported },
	}
	addrs, err := hosts.LookupNetIP(ctx, "ip4", name)
	for i, a := range addrs {
		addrs[i] = a.Unmap()
	}
	return Answer{addrs, hostsTTL}, err
}

// ask asks one server after the other, until one answers.
func ask(ctx context.Context, conf *dns.ClientConfig, name string) (Answer, error) {
	question := new(dns.Msg).SetQuestion(name, dns.TypeA)
	why := errors.New("/etc/resolv.conf has no server")
	for range conf.Attempts {
		for _, server := range conf.Servers {
			reply, err := exchange(ctx, question, net.JoinHostPort(server, conf.Port), time.Duration(conf.Timeout)*time.Second)
			switch {
			case ctx.Err() != nil:
				return Answer{}, ctx.Err()
			case err != nil:
				if op := new(net.OpError); errors.As(err, &op) {
					err = op.Err // without the sockets' addresses
				}
				why = fmt.Errorf("ask %s: %w", server, err)
			case reply.Rcode == dns.RcodeNameError:
				return Answer{}, errNoSuchName
			case reply.Rcode != dns.RcodeSuccess:
				why = fmt.Errorf("%s answers %s", server, dns.RcodeToString[reply.Rcode])
			default:
				return answer(reply)
			}
		}
	}
	return Answer{}, why
}

// exchange asks a server by UDP, and again by TCP if the answer is too long for that.
func exchange(ctx context.Context, question *dns.Msg, server string, timeout time.Duration) (reply *dns.Msg, err error) {
	for _, network := range []string{"udp", "tcp"} {
		client := dns.Client{Net: network, Timeout: timeout}
		conn, err := client.DialContext(ctx, server)
		if err != nil {
			return nil, err
		}
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		reply, _, err = client.ExchangeWithConnContext(ctx, question, conn)
		stop()
		conn.Close()
		if err != nil || !reply.Truncated {
			return reply, err
		}
	}
	return reply, nil
}

// answer returns the addresses of a reply, which has those of all names that the question's
// is an alias of, and the shortest TTL on the way there.
func answer(reply *dns.Msg) (a Answer, err error) {
	for i, record := range reply.Answer {
		ttl := time.Duration(record.Header().Ttl) * time.Second
		if i == 0 || ttl < a.TTL {
			a.TTL = ttl
		}
		if record, ok := record.(*dns.A); ok {
			if addr, ok := netip.AddrFromSlice(record.A.To4()); ok {
				a.Addrs = append(a.Addrs, addr)
			}
		}
	}
	if len(a.Addrs) == 0 {
		return a, errNoIPv4
	}
	return a, nil
}
