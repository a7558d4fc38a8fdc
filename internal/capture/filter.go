package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/net/bpf"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// Filter chooses packets. The zero Filter matches all.
type Filter struct {
	program []bpf.Instruction
	vm      *bpf.VM
}

// errNoTcpdump says how to do without tcpdump, or how to get it.
var errNoTcpdump = errors.New("tcpdump is not installed: install it, or do without FILTER and with -w FILE")

// Compile makes a Filter of an expression in tcpdump's language (pcap-filter(7)), by which the
// packet begins with its IP header. An empty one matches all.
func Compile(ctx context.Context, expression string) (f Filter, err error) {
	if expression == "" {
		return f, nil
	}
	// A file without packets says what they begin with; tcpdump then opens no device.
	var in, out, messages bytes.Buffer
	if err = pcapgo.NewWriter(&in).WriteFileHeader(longest, layers.LinkTypeRaw); err != nil {
		return f, err
	}
	cmd := exec.CommandContext(ctx, "tcpdump", "-ddd", "-r", "-", "--", expression)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &out, &messages
	if err = cmd.Run(); err != nil {
		return f, fmt.Errorf("filter %q: %w", expression, tcpdumpError(err, messages.String()))
	}
	raw, err := readProgram(out.String())
	if err != nil {
		return f, fmt.Errorf("filter %q: what tcpdump -ddd printed is no program: %w", expression, err)
	}
	f.program, _ = bpf.Disassemble(raw)
	f.vm, err = bpf.NewVM(f.program)
	return f, err
}

// tcpdumpError returns why tcpdump has ended, in its own words.
func tcpdumpError(err error, messages string) error {
	if errors.Is(err, exec.ErrNotFound) {
		return errNoTcpdump
	}
	for line := range strings.Lines(messages) {
		if text, ok := strings.CutPrefix(line, "tcpdump: "); ok {
			return errors.New(strings.TrimSpace(text))
		}
	}
	return fmt.Errorf("tcpdump: %w: %s", err, strings.TrimSpace(messages))
}

// readProgram reads what tcpdump -ddd prints: the number of instructions, and a line of four
// numbers for each.
func readProgram(text string) ([]bpf.RawInstruction, error) {
	count, rest, _ := strings.Cut(text, "\n")
	var program []bpf.RawInstruction
	for line := range strings.Lines(rest) {
		var i bpf.RawInstruction
		if _, err := fmt.Sscan(line, &i.Op, &i.Jt, &i.Jf, &i.K); err != nil {
			return nil, fmt.Errorf("line %q: %w", line, err)
		}
		program = append(program, i)
	}
	if n, err := strconv.Atoi(count); err != nil || n != len(program) || n == 0 {
		return nil, fmt.Errorf("%d instructions, announced as %q", len(program), count)
	}
	return program, nil
}

// Matches reports whether the Filter matches a packet.
func (f Filter) Matches(packet []byte) bool {
	if f.vm == nil {
		return true
	}
	keep, err := f.vm.Run(packet)
	return err == nil && keep > 0
}

// Offsets in IPv4 and ICMP headers, in bytes.
const (
	offProtocol    = 9
	offSource      = 12
	offDestination = 16
	icmpHdrLen     = 8
)

// filter returns a program that leaves to rest what is of protocol 4 between both ends, in
// either direction, and ICMP errors that quote such a packet. A nil rest keeps all.
func (e Ends) filter(rest []bpf.Instruction) []bpf.Instruction {
	if rest == nil {
		rest = []bpf.Instruction{bpf.RetConstant{Val: longest}}
	}
	var p program
	p.add(bpf.LoadConstant{Dst: bpf.RegX, Val: 0})
	p.add(bpf.LoadAbsolute{Off: offProtocol, Size: 1})
	p.jumpIf(4, "ends", "")
	p.jumpIf(1, "", "drop")
	p.add(bpf.LoadMemShift{Off: 0}, bpf.LoadIndirect{Off: 0, Size: 1}) // X is the header's length
	for _, icmpError := range []uint32{3, 4, 5, 11} {
		p.jumpIf(icmpError, "quote", "")
	}
	p.jumpIf(12, "", "drop")
	p.label("quote")
	p.add(bpf.TXA{}, bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: icmpHdrLen}, bpf.TAX{})
	p.add(bpf.LoadIndirect{Off: offProtocol, Size: 1})
	p.jumpIf(4, "", "drop")
	p.label("ends") // of the header at X
	p.add(bpf.LoadIndirect{Off: offSource, Size: 4})
	p.jumpIf(number(e.Remote), "", "sent")
	if e.Local.IsValid() {
		p.add(bpf.LoadIndirect{Off: offDestination, Size: 4})
		p.jumpIf(number(e.Local), "keep", "drop")
	} else {
		p.jump("keep")
	}
	p.label("sent")
	if e.Local.IsValid() {
		p.jumpIf(number(e.Local), "", "drop")
	}
	p.add(bpf.LoadIndirect{Off: offDestination, Size: 4})
	p.jumpIf(number(e.Remote), "keep", "drop")
	p.label("drop")
	p.add(bpf.RetConstant{Val: 0})
	p.label("keep")
	p.add(rest...)
	return p.resolve()
}

// program is instructions with jumps to labels further on.
type program struct {
	code   []bpf.Instruction
	jumps  map[int][2]string // by the place of the instruction: where to if true, and if not
	labels map[string]int
}

func (p *program) add(i ...bpf.Instruction) { p.code = append(p.code, i...) }

// jumpIf compares A with a value. An empty label is the next instruction.
func (p *program) jumpIf(value uint32, ifTrue, ifFalse string) {
	p.setJump(ifTrue, ifFalse)
	p.add(bpf.JumpIf{Cond: bpf.JumpEqual, Val: value})
}

func (p *program) jump(to string) {
	p.setJump(to, to)
	p.add(bpf.JumpIf{Cond: bpf.JumpEqual})
}

func (p *program) setJump(ifTrue, ifFalse string) {
	if p.jumps == nil {
		p.jumps = map[int][2]string{}
	}
	p.jumps[len(p.code)] = [2]string{ifTrue, ifFalse}
}

func (p *program) label(name string) {
	if p.labels == nil {
		p.labels = map[string]int{}
	}
	p.labels[name] = len(p.code)
}

// resolve returns the instructions with the distances of jumps, which are short.
func (p *program) resolve() []bpf.Instruction {
	for at, to := range p.jumps {
		skip := func(label string) uint8 {
			if label == "" {
				return 0
			}
			return uint8(p.labels[label] - at - 1)
		}
		j := p.code[at].(bpf.JumpIf)
		j.SkipTrue, j.SkipFalse = skip(to[0]), skip(to[1])
		p.code[at] = j
	}
	return p.code
}

// number returns an address as a filter loads it.
func number(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}
