package fastpath

import (
	"testing"

	"goipip/internal/netlab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }
