package underlay

import (
	"bufio"
	"errors"
	"os"
	"strings"
)

// conflictRemedy says how to end a conflict.
const conflictRemedy = "remove the module (rmmod ipip sit tunnel4), or keep its answers here " +
	"(iptables -I OUTPUT -p icmp --icmp-type port-unreachable -d REMOTE -j DROP)"

// lookForConflict logs a warning when something else in this kernel begins to handle ipip
// packets to this host, and a message when that ends. No event announces modules, or
// what is built into the kernel.
//
// A raw socket does not withhold packets from a protocol handler. tunnel4 answers each
// packet for which it has no tunnel with ICMP 3/3 (tunnel4_rcv in
// net/ipv4/tunnel4.c), which a kernel at the other end reports to its own senders
// as "host unreachable" (T8).
func (w *Watcher) lookForConflict() {
	users, loaded, _ := moduleUsers("tunnel4") // without /proc/modules, its links show it
	w.mu.Lock()
	found := w.conflictingLink()
	if loaded {
		found = strings.TrimSuffix("tunnel4, for "+users, ", for ")
	}
	before := w.conflict
	w.conflict = found
	w.mu.Unlock()
	switch {
	case found != "" && before == "":
		w.log.Warn("the kernel answers every ipip packet too, with ICMP 3/3, which a kernel at the other end takes for an error: "+conflictRemedy,
			"module", found)
	case found == "" && before != "":
		w.log.Info("nothing else here answers ipip packets any longer")
	}
}

// conflictingLink names a link of a kind that only users of tunnel4 make, and its kind:
// they may be built in. It is empty if there is none. It needs mu.
func (w *Watcher) conflictingLink() string {
	for _, l := range w.links.byIndex {
		if l.Kind == "ipip" || l.Kind == "sit" {
			return l.Kind + ", of link " + l.Name
		}
	}
	return ""
}

// moduleUsers returns the modules that use a module, separated by commas, and whether that
// is loaded (/proc/modules, see proc(5)).
func moduleUsers(module string) (users string, loaded bool, err error) {
	f, err := os.Open("/proc/modules")
	if errors.Is(err, os.ErrNotExist) {
		return "", false, nil // a kernel without modules
	}
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// name size references users, state address
		if fields := strings.Fields(lines.Text()); len(fields) > 3 && fields[0] == module {
			return strings.Trim(fields[3], ",-"), true, nil
		}
	}
	return "", false, lines.Err()
}
