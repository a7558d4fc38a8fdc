package underlay

import (
	"bufio"
	"errors"
	"os"
	"strings"
)

// conflictRemedy is what to do about a conflict.
const conflictRemedy = "remove the module (rmmod ipip sit tunnel4), or keep its answers here " +
	"(iptables -I OUTPUT -p icmp --icmp-type port-unreachable -d REMOTE -j DROP)"

// lookForConflict warns, once, when something else in this kernel handles ipip packets
// to this host, and says when that is over. No event tells of modules, or of what the
// kernel has built in.
//
// A raw socket does not keep packets from a protocol handler. tunnel4 answers each
// packet for which it has no tunnel with ICMP 3/3 (tunnel4_rcv in
// net/ipv4/tunnel4.c), which a kernel at the other end reports to its own senders
// as "host unreachable" (T8).
func (w *Watcher) lookForConflict() {
	users, loaded, _ := moduleUsers("tunnel4") // where that cannot be seen, its links can
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
		w.log.Info("nothing else here answers ipip packets any more")
	}
}

// conflictingLink returns what makes a link that only tunnel4's users make, where they
// are built in; empty for none. It needs mu.
func (w *Watcher) conflictingLink() string {
	for _, l := range w.links {
		if l.Kind == "ipip" || l.Kind == "sit" {
			return l.Kind + ", of link " + l.Name
		}
	}
	return ""
}

// moduleUsers returns the modules that use one, separated by commas, and whether that is
// loaded (/proc/modules, in proc(5)).
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
