package netlab

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

// content returns the pseudo-random bytes that belong to seed. Whoever receives them can tell by the seed what must have
// been sent.
func content(seed uint64) *rand.ChaCha8 {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}

// differ describes where got is not want, which it is not.
func differ(got, want []byte) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d bytes in place of %d", len(got), len(want))
	}
	i := 0
	for got[i] == want[i] {
		i++
	}
	return fmt.Errorf("byte %d is %#02x in place of %#02x", i, got[i], want[i])
}
