/* SHA-256 (FIPS 180-4), for the content digest that the server announces. */
#include "firmware.h"

static const uint32_t K[64] = {
    0x428a2f98u, 0x71374491u, 0xb5c0fbcfu, 0xe9b5dba5u, 0x3956c25bu, 0x59f111f1u, 0x923f82a4u, 0xab1c5ed5u,
    0xd807aa98u, 0x12835b01u, 0x243185beu, 0x550c7dc3u, 0x72be5d74u, 0x80deb1feu, 0x9bdc06a7u, 0xc19bf174u,
    0xe49b69c1u, 0xefbe4786u, 0x0fc19dc6u, 0x240ca1ccu, 0x2de92c6fu, 0x4a7484aau, 0x5cb0a9dcu, 0x76f988dau,
    0x983e5152u, 0xa831c66du, 0xb00327c8u, 0xbf597fc7u, 0xc6e00bf3u, 0xd5a79147u, 0x06ca6351u, 0x14292967u,
    0x27b70a85u, 0x2e1b2138u, 0x4d2c6dfcu, 0x53380d13u, 0x650a7354u, 0x766a0abbu, 0x81c2c92eu, 0x92722c85u,
    0xa2bfe8a1u, 0xa81a664bu, 0xc24b8b70u, 0xc76c51a3u, 0xd192e819u, 0xd6990624u, 0xf40e3585u, 0x106aa070u,
    0x19a4c116u, 0x1e376c08u, 0x2748774cu, 0x34b0bcb5u, 0x391c0cb3u, 0x4ed8aa4au, 0x5b9cca4fu, 0x682e6ff3u,
    0x748f82eeu, 0x78a5636fu, 0x84c87814u, 0x8cc70208u, 0x90befffau, 0xa4506cebu, 0xbef9a3f7u, 0xc67178f2u};

static uint32_t rotate(uint32_t x, uint32_t n) { return (x >> n) | (x << (32u - n)); }

static uint32_t big_endian(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void put_big_endian(uint8_t *p, uint32_t x) {
    for (uint32_t i = 0; i < 4u; i++) p[i] = (uint8_t)(x >> (24u - 8u * i));
}

static void compress(uint32_t state[8], const uint8_t block[64]) {
    uint32_t w[16];
    uint32_t s[8];
    for (uint32_t i = 0; i < 16u; i++) w[i] = big_endian(block + 4u * i);
    memcpy(s, state, sizeof s);
    for (uint32_t i = 0; i < 64u; i++) {
        if (i >= 16u) {
            uint32_t a = w[(i + 1u) & 15u];
            uint32_t b = w[(i + 14u) & 15u];
            w[i & 15u] += (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[(i + 9u) & 15u] + (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
        }
        uint32_t first = s[7] + (rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) +
                         K[i] + w[i & 15u];
        uint32_t second = (rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7u * sizeof s[0]);
        s[4] += first;
        s[0] = first + second;
    }
    for (uint32_t i = 0; i < 8u; i++) state[i] += s[i];
}

void fw_sha256(const uint8_t *data, uint32_t size, uint8_t digest[FW_DIGEST_BYTES]) {
    uint32_t state[8] = {0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au, 0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u};
    uint8_t tail[128];
    uint32_t whole = size & ~63u;
    uint32_t rest = size - whole;
    uint32_t end = rest < 56u ? 64u : 128u;
    for (uint32_t at = 0; at < whole; at += 64u) compress(state, data + at);
    memset(tail, 0, sizeof tail);
    memcpy(tail, data + whole, rest);
    tail[rest] = 0x80;
    put_big_endian(tail + end - 8u, size >> 29);
    put_big_endian(tail + end - 4u, size << 3);
    for (uint32_t at = 0; at < end; at += 64u) compress(state, tail + at);
    for (uint32_t i = 0; i < 8u; i++) put_big_endian(digest + 4u * i, state[i]);
}
