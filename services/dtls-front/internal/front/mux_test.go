package front

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
)

// hello is the first datagram of a handshake.
func hello(t *testing.T) []byte {
	t.Helper()
	sink, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { _, _ = connect(ctx, sink.LocalAddr().(*net.UDPAddr), nil) }()
	buffer := make([]byte, maxDatagram)
	count, _, err := sink.ReadFromUDP(buffer)
	if err != nil {
		t.Fatal(err)
	}
	return buffer[:count]
}

// connect does a handshake as node-1 from a socket, or from any.
func connect(ctx context.Context, server *net.UDPAddr, socket *net.UDPConn) (*dtls.Conn, error) {
	if socket == nil {
		var err error
		if socket, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
			return nil, err
		}
	}
	secure, err := dtls.ClientWithOptions(socket, server,
		dtls.WithPSK(func([]byte) ([]byte, error) { return []byte("0123456789abcdef"), nil }),
		dtls.WithPSKIdentityHint([]byte("node-1")),
		dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8))
	if err != nil {
		return nil, err
	}
	return secure, secure.HandshakeContext(ctx)
}

// flood sends a ClientHello from each of so many addresses, and listens at none.
func flood(t *testing.T, to net.Addr, first []byte, count int) {
	t.Helper()
	for number := range count {
		from := &net.UDPAddr{IP: net.IPv4(127, 9, byte(number>>8), byte(number)), Port: 0}
		socket, err := net.DialUDP("udp", from, to.(*net.UDPAddr))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := socket.Write(first); err != nil {
			t.Fatal(err)
		}
		_ = socket.Close()
	}
}

// DO-SEC-011, 013.
func TestAFloodFromForgedAddressesShutsNobodyOut(t *testing.T) {
	rig := newRig(t, func(limits *Limits) {
		limits.Unproven, limits.Handshakes, limits.Sources = 64, 1, 1
		limits.HandshakesPerSecond, limits.HandshakeBurst = 0, 1
	})
	first := hello(t)
	flood(t, rig.front.Address(), first, 500)
	eventually(t, "the flood arrives", func() bool { return rig.front.mux.evicted.Load()+rig.front.mux.dropped.Load() > 100 })
	device := rig.device("node-1", "0123456789abcdef")
	device.send("a")
	device.receive()
	flood(t, rig.front.Address(), first, 500)
	device.send("b")
	device.receive()
	if limited, done := rig.front.Counters.HandshakesLimited.Load(), rig.front.Counters.Handshakes.Load(); limited != 0 || done != 1 {
		t.Error("limited:", limited, "done:", done)
	}
	rig.front.mux.mutex.Lock()
	defer rig.front.mux.mutex.Unlock()
	if kept := len(rig.front.mux.beginning); kept > 64 {
		t.Error(kept, "handshakes are kept")
	}
}

// DO-SEC-011, 013.
func TestWhatHasReturnedItsCookieIsLimited(t *testing.T) {
	rig := newRig(t, func(limits *Limits) { limits.HandshakesPerSecond, limits.HandshakeBurst = 0, 1 })
	for number := range 3 {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		if number > 0 {
			ctx, cancel = context.WithCancel(context.Background())
			go func() {
				eventually(t, "it is turned away", func() bool { return rig.front.Counters.HandshakesLimited.Load() == uint64(number) })
				cancel()
			}()
		}
		secure, err := connect(ctx, rig.front.Address().(*net.UDPAddr), nil)
		if (err == nil) != (number == 0) {
			t.Error(number, err)
		}
		t.Cleanup(func() { cancel(); _ = secure.Close() })
	}
}

func TestADeviceThatBeginsAnewFromItsPortTakesThePlaceOfItsSession(t *testing.T) {
	rig := newRig(t, nil)
	port := 0
	for number := range 2 {
		socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err != nil {
			t.Fatal(err)
		}
		port = socket.LocalAddr().(*net.UDPAddr).Port
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		secure, err := connect(ctx, rig.front.Address().(*net.UDPAddr), socket)
		cancel()
		if err != nil {
			t.Fatal(number, err)
		}
		if _, err := secure.Write([]byte("a")); err != nil {
			t.Fatal(err)
		}
		_ = secure.SetReadDeadline(time.Now().Add(patience))
		if _, err := secure.Read(make([]byte, maxDatagram)); err != nil {
			t.Fatal(number, err)
		}
		// Power is lost: the session is not closed, its socket is.
		_ = socket.Close()
	}
	eventually(t, "the first session has ended", func() bool { return len(rig.keys.sessions()) == 1 })
}

// DO-SEC-013.
func TestAForgedHelloDoesNotDisturbTheSessionOfItsAddress(t *testing.T) {
	rig := newRig(t, nil)
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	secure, err := connect(ctx, rig.front.Address().(*net.UDPAddr), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer secure.Close()
	if _, err := socket.WriteTo(hello(t), rig.front.Address()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the forged one is kept beside it", func() bool {
		rig.front.mux.mutex.Lock()
		defer rig.front.mux.mutex.Unlock()
		return len(rig.front.mux.beginning) == 1
	})
	if _, err := secure.Write([]byte("a")); err != nil {
		t.Fatal(err)
	}
	_ = secure.SetReadDeadline(time.Now().Add(patience))
	if _, err := secure.Read(make([]byte, maxDatagram)); err != nil {
		t.Error("the session is dead:", err)
	}
	if count := len(rig.keys.sessions()); count != 1 {
		t.Error("sessions:", count)
	}
}
