package iproute

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
)

// exit is the end of a command with a status other than 0.
type exit struct {
	status int
	text   string // for standard error
}

func (e *exit) Error() string { return e.text }

// Statuses of ip(8): of exit(-1), of a command that returns -1, and of a refusal by netlink.
const (
	statusWrong   = 255
	statusFailed  = 1
	statusRefused = 2
)

// wrong is an error of the command line (lib/utils.c in iproute2).
func wrong(format string, args ...any) error {
	return &exit{statusWrong, fmt.Sprintf(format, args...) + "\n"}
}

func failed(format string, args ...any) error {
	return &exit{statusFailed, fmt.Sprintf(format, args...) + "\n"}
}

// unsupported is what ip(8) has and goipip has not.
func unsupported(what string) error {
	return wrong("goipip makes ipip tunnels only: %s: use ip for that", what)
}

func wrongArgument(message, arg string) error {
	return wrong("Error: argument \"%s\" is wrong: %s", arg, message)
}

// strerror is the text that glibc has for an errno: that of package syscall with a capital.
func strerror(errno syscall.Errno) string {
	text := errno.Error()
	return strings.ToUpper(text[:1]) + text[1:]
}

// refused returns err of a backend as an error of ip(8): with an errno as ip says it, and
// else as it is.
func refused(format string, name string, err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err
	}
	return explained(failed(format, name, strerror(errno)), errno, err)
}

// refusedByNetlink does so for what netlink refuses.
func refusedByNetlink(err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err
	}
	return explained(&exit{statusRefused, "RTNETLINK answers: " + strerror(errno) + "\n"}, errno, err)
}

// explained adds a line with what ip could not know to an error, such as why there is no TUN
// device. That something exists, or is wrong, ip's own line says well enough.
func explained(ip error, errno syscall.Errno, err error) error {
	var e *exit
	if err != errno && errno != syscall.EEXIST && errno != syscall.EINVAL && errors.As(ip, &e) {
		e.text += "goipip: " + err.Error() + "\n"
	}
	return ip
}

// words are the arguments that are left.
type words []string

// next removes and returns the first word.
func (w *words) next() string {
	first := (*w)[0]
	*w = (*w)[1:]
	return first
}

// value removes and returns the first word, which must be there.
func (w *words) value() (string, error) {
	if len(*w) == 0 {
		return "", wrong(`Command line is not complete. Try option "help"`)
	}
	return w.next(), nil
}

// abbreviates reports whether word is a beginning of full, as ip takes many words.
func abbreviates(word, full string) bool { return word != "" && strings.HasPrefix(full, word) }

// number reads a number as strtoul(3) does with base 0: decimal, octal with a leading 0, or
// hexadecimal. It must not be greater than most.
func number(s string, most uint64) (uint64, bool) {
	n, rest, ok := leadingNumber(s)
	return n, ok && rest == "" && n <= most
}

// leadingNumber reads the number that s begins with, and returns what follows.
func leadingNumber(s string) (n uint64, rest string, ok bool) {
	digits := strings.TrimPrefix(strings.TrimLeft(s, " \t\n\v\f\r"), "+")
	base, set := 10, "0123456789"
	switch lower := strings.ToLower(digits); {
	case len(lower) > 2 && strings.HasPrefix(lower, "0x") && strings.ContainsRune("0123456789abcdef", rune(lower[2])):
		base, set, digits = 16, "0123456789abcdefABCDEF", digits[2:]
	case strings.HasPrefix(lower, "0"):
		base, set = 8, "01234567"
	}
	rest = strings.TrimLeft(digits, set)
	n, err := strconv.ParseUint(digits[:len(digits)-len(rest)], base, 64)
	if errors.Is(err, strconv.ErrRange) {
		return math.MaxUint64, rest, true
	}
	return n, rest, err == nil
}

// address reads an address as ip does (get_addr_1 in lib/utils.c): the zero Addr for any, and
// missing numbers are 0, so that 10.8 is 10.8.0.0.
func address(s string) (a netip.Addr, ok bool) {
	switch s {
	case "any", "all", "default":
		return a, true
	}
	var bytes [4]byte
	for i := range bytes {
		n, rest, ok := leadingNumber(s)
		if !ok || n > 255 {
			return a, false
		}
		bytes[i] = byte(n)
		if rest == "" {
			break
		}
		if i == len(bytes)-1 || rest[0] != '.' {
			return a, false
		}
		s = rest[1:]
	}
	if bytes == [4]byte{} {
		return a, true
	}
	return netip.AddrFrom4(bytes), true
}

// validName reports whether a link can have a name, as far as ip checks (check_ifname).
func validName(s string) bool {
	return s != "" && len(s) < syscall.IFNAMSIZ && !strings.ContainsAny(s, "/ \t\n\v\f\r")
}

// findDevice returns the name of a device, which may be given by another name of it.
func findDevice(name string) (string, error) {
	if i, err := net.InterfaceByName(name); err == nil {
		return i.Name, nil
	}
	if index, ok := strings.CutPrefix(name, "if"); ok {
		if n, ok := number(index, math.MaxInt32); ok {
			if i, err := net.InterfaceByIndex(int(n)); err == nil {
				return i.Name, nil
			}
		}
	}
	return "", failed("Cannot find device \"%s\"", name)
}
