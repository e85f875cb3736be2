/* Judge images from a file: for each "<u32 size><bytes>" print what tim_parse and what tim_verify say.
 * Each image lies in a heap block of exactly its size, so that a sanitizer sees every read outside.
 *   verdicts FILE MINIMUM_COUNTER ; FILE begins with the trusted key: 8 bytes id, 32 bytes public key */
#include <stdio.h>
#include <stdlib.h>

#include "tim.h"

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    FILE *file = fopen(argv[1], "rb");
    tim_key key;
    if (file == NULL || fread(&key, 1, sizeof key, file) != 40) return 2;
    tim_platform platform = {&key, 1, 0x7E, 0x3FF, 63, 0};
    uint32_t size;
    while (fread(&size, 1, 4, file) == 4) {
        uint8_t *image = malloc(size == 0 ? 1 : size);
        if (image == NULL || fread(image, 1, size, file) != size) return 2;
        tim_module module;
        tim_status parsed = tim_parse(image, size, &module);
        tim_status verified = parsed;
        if (parsed == TIM_OK) verified = tim_verify(&module, &platform, (uint32_t)strtoul(argv[2], NULL, 10));
        printf("%s %s\n", tim_status_name(parsed), tim_status_name(verified));
        free(image);
    }
    return fclose(file);
}
